"""Objects of security.istio.io for tests: short ways to write them, and to sum them up."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from mesh.manifest import Key
from waypoint.config.security import Jwks, Provider, Security, SecurityIndex, Target, TargetState

ROOT = "istio-system"
CART = Target("Service", "shop", "cart")
Object = dict[str, Any]
_names = (f"p{i}" for i in itertools.count())
BOUND = TargetState(True, ("shop/wp",))


def ref(target: Target = CART) -> Object:
    """Refer to a target."""
    group = {"Service": "", "ServiceEntry": "networking.istio.io"}
    return {
        "group": group.get(target.kind, "gateway.networking.k8s.io"),
        "kind": target.kind,
        "name": target.name,
    }


def policy(action: str, *rules: Any, **fields: Any) -> Object:
    """Write an AuthorizationPolicy for the service cart; `name`, `namespace`, `dry_run` apart."""
    metadata = {
        "name": fields.pop("name", None) or next(_names),
        "namespace": fields.pop("namespace", "shop"),
    }
    if "dry_run" in fields:
        metadata["annotations"] = {"istio.io/dry-run": fields.pop("dry_run")}
    spec = {"targetRefs": [ref()], "action": action, "rules": list(rules), **fields}
    return {"kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec}


def to(**operation: Any) -> Object:
    """Write a rule about what is asked for."""
    return {"to": [{"operation": operation}]}


def source(**fields: Any) -> Object:
    """Write a rule about who asks."""
    return {"from": [{"source": fields}]}


def when(key: str, *values: str, **fields: Any) -> Object:
    """Write a rule of one condition."""
    return {"when": [{"key": key, **({"values": list(values)} if values else {}), **fields}]}


def authentication(*rules: Object, **fields: Any) -> Object:
    """Write a RequestAuthentication for the service cart."""
    metadata = {"name": fields.pop("name", "tokens"), "namespace": "shop"}
    spec = {"targetRefs": [ref()], "jwtRules": list(rules), **fields}
    return {"kind": "RequestAuthentication", "metadata": metadata, "spec": spec}


def key_of(obj: Object) -> Key:
    """Name an object."""
    return Key(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])


def indexed(
    *objects: Object,
    providers: Mapping[str, Provider] | None = None,
    jwks: Mapping[str, Jwks] | None = None,
) -> SecurityIndex:
    """Read objects."""
    index = SecurityIndex(ROOT)
    index.set_providers(providers or {})
    index.set_jwks(jwks or {})
    for obj in objects:
        index.put(key_of(obj), obj)
    return index


def security(*objects: Object, **fields: Any) -> Security:
    """Sum up what objects mean for the service cart."""
    return indexed(*objects, **fields).security(CART)


def condition(*objects: Object, state: TargetState = BOUND, **fields: Any) -> tuple[bool, str, str]:
    """Sum up the status of the first object: (status, reason, message)."""
    (found,) = (
        indexed(*objects, **fields).status(key_of(objects[0]), lambda target: state).conditions
    )
    assert found.type == "WaypointAccepted"
    return found.status, found.reason, found.message


class Issuer:
    """Somebody who signs tokens."""

    def __init__(self, name: str = "https://issuer.example") -> None:
        self.name = name
        self._key = rsa.generate_private_key(65537, 2048)
        self._kid = name[-8:]

    @property
    def jwks(self) -> str:
        """The public keys."""
        key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key()))
        return json.dumps({"keys": [{**key, "kid": self._kid, "alg": "RS256", "use": "sig"}]})

    def rule(self, **fields: Any) -> Object:
        """Write a jwtRule with the keys in it."""
        return {"issuer": self.name, "jwks": self.jwks, **fields}

    def token(self, **claims: Any) -> str:
        """Sign a token; it is good for ten minutes, of the subject alice, unless told otherwise."""
        claims = {"iss": self.name, "sub": "alice", "exp": time.time() + 600, **claims}
        return jwt.encode(claims, self._key, "RS256", headers={"kid": self._kid})

    def bearer(self, **claims: Any) -> str:
        """Sign a token and write it as the header Authorization."""
        return f"Bearer {self.token(**claims)}"
