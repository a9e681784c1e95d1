"""The demo's second act: a waypoint, and what it does to requests, each with live counts."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from cli.stage import DemoFailed, good, say, step, wait
from lab import Lab

EXAMPLES: Final = Path(__file__).parent.parent / "lab" / "examples" / "waypoint"
_URL: Final = "http://prices"
_ISSUER: Final = "https://login.shop.example"

# Runs in the client's pod: requests as fast as they are answered, a line of counts as JSON when
# its time is over. Each answer counts under "status version".
_LOAD: Final = """
import collections, http.client, json, sys, time
path, seconds, pause = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
counts, end, n = collections.Counter(), time.time() + seconds, 0
connection = http.client.HTTPConnection("prices", 80, timeout=5)
while time.time() < end:
    n += 1
    try:
        connection.request("GET", path.replace("{n}", str(n)))
        answer = connection.getresponse()
        body = answer.read()
        version = json.loads(body).get("version", "") if answer.status == 200 else ""
        counts[f"{answer.status} {version}".strip()] += 1
    except (OSError, http.client.HTTPException, ValueError) as e:
        counts[type(e).__name__] += 1
        connection.close()
    time.sleep(pause)
print(json.dumps(counts))
"""


def summary(counts: Counter[str]) -> str:
    """Counts as people read them: `93 x 200 v1, 7 x 200 v2`."""
    return ", ".join(f"{n} x {what}" for what, n in sorted(counts.items())) or "nothing"


def token_policy(key: ec.EllipticCurvePrivateKey) -> list[dict[str, Any]]:
    """Build the policies of a path that only callers with a token of this key may read."""
    public = json.loads(ECAlgorithm.to_jwk(key.public_key()))
    target = {"group": "", "kind": "Service", "name": "prices"}
    meta = {"name": "prices", "namespace": "shop"}
    jwks = json.dumps({"keys": [{**public, "kid": "demo", "use": "sig", "alg": "ES256"}]})
    api = "security.istio.io/v1"
    return [
        {
            "apiVersion": api,
            "kind": "RequestAuthentication",
            "metadata": meta,
            "spec": {"targetRefs": [target], "jwtRules": [{"issuer": _ISSUER, "jwks": jwks}]},
        },
        {
            "apiVersion": api,
            "kind": "AuthorizationPolicy",
            "metadata": meta,
            "spec": {
                "targetRefs": [target],
                "action": "DENY",
                "rules": [
                    {
                        "from": [{"source": {"notRequestPrincipals": ["*"]}}],
                        "to": [{"operation": {"paths": ["/cost*"]}}],
                    }
                ],
            },
        },
    ]


class SecondAct:
    """Steps 6 to 11, over the lab of the first act."""

    def __init__(self, lab: Lab, client: Callable[[str], str], name: str) -> None:
        self.lab = lab
        self._client = client  # NS/POD of an app
        self._name = name

    def _step(self, number: int, title: str, file: str) -> None:
        step(number, title, f"ambit lab apply -f lab/examples/waypoint/{file} --name {self._name}")

    def _load(self, seconds: float, path: str = "/", pause: float = 0.0) -> Counter[str]:
        """Send requests from the frontend and count the answers."""
        words = ["python3", "-c", _LOAD, path, str(seconds), str(pause)]
        done = self.lab.exec(self._client("frontend"), words, timeout=seconds + 30)
        if done.returncode:
            raise DemoFailed(f"the load ended with: {done.stderr.strip()[-200:]}")
        return Counter(json.loads(done.stdout))

    def _ask(self, path: str, *words: str) -> str:
        """Status of one request."""
        argv = ["curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", *words]
        return self.lab.exec(self._client("frontend"), [*argv, _URL + path]).stdout

    def waypoint(self) -> None:
        """One Gateway and one label."""
        self._step(6, "A Gateway and a label put a waypoint before a service", "prices.yaml")
        began = time.monotonic()
        self.lab.apply([EXAMPLES / "prices.yaml"])
        wait("an answer through the waypoint", lambda: self._ask("/") == "200", 20)
        gateway = self.lab.store.get("Gateway", "shop", "waypoint") or {}
        conditions = {c["type"]: c for c in gateway.get("status", {}).get("conditions", [])}
        programmed = conditions.get("Programmed", {})
        if programmed.get("status") != "True":
            raise DemoFailed(f"the Gateway is not Programmed: {programmed.get('message')}")
        took = time.monotonic() - began
        good(
            f"Gateway shop/waypoint is Programmed, {took:.1f} s after apply; nothing was restarted"
        )

    def canary(self) -> None:
        """90/10, then 0/100, while requests run."""
        self._step(7, "A canary takes a tenth, then all, while requests run", "canary-10.yaml")
        self.lab.apply([EXAMPLES / "canary-10.yaml"])
        wait("the canary's first answer", lambda: self._load(0.3)["200 v2"], 10)
        before = self._load(1.0)
        say(f"   90/10:  {summary(before)}")
        words = ["python3", "-c", _LOAD, "/", "2.5", "0"]
        shifted = Counter[str]()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self.lab.exec, self._client("frontend"), words)
            time.sleep(0.8)
            self.lab.apply([EXAMPLES / "canary-100.yaml"])
            shifted.update(json.loads(running.result().stdout))
        say(f"   while it is shifted:  {summary(shifted)}")
        after = self._load(0.5)
        say(f"   0/100:  {summary(after)}")
        _only(before + shifted + after, "200 v1", "200 v2")
        _only(after, "200 v2")
        good(f"{(before + shifted + after).total()} requests, none failed")

    def mirror(self) -> None:
        """The new version sees copies."""
        self._step(8, "A mirror: the new version gets copies, the old one answers", "mirror.yaml")
        self.lab.apply([EXAMPLES / "mirror.yaml"])
        wait("the old version", lambda: set(self._load(0.2)) == {"200 v1"}, 10)
        before = self._count("prices-v2")
        answered = self._load(1.0)
        _only(answered, "200 v1")
        time.sleep(0.5)
        copies = self._count("prices-v2") - before
        say(f"   answered: {summary(answered)}; copies that prices-v2 got: {copies:.0f}")
        if copies < 0.9 * answered.total():
            raise DemoFailed("requests were not copied")
        good("no caller waits for a copy, and no caller sees its answer")
        self.lab.delete([EXAMPLES / "mirror.yaml"])

    def _count(self, workload: str) -> float:
        """Connections' bytes do not count requests: the pod's own page does."""
        for pod in self.lab.pods():
            if pod["metadata"]["name"].startswith(workload):
                where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
                page = self.lab.exec(where, ["curl", "-s", "localhost:8080/count"]).stdout
                return float(json.loads(page)["requests"])
        raise DemoFailed(f"no pod of {workload}")

    def retry(self) -> None:
        """Pods that each fail the first time they see a request."""
        self._step(9, "Retries hide pods that fail at first", "retry.yaml")
        path = "/?flaky=1&id=r{n}"
        without = self._load(0.6, path.replace("id=r", "id=a"), 0.02)
        say(f"   without:  {summary(without)}")
        self.lab.apply([EXAMPLES / "retry.yaml"])
        wait(
            "a request that is retried",
            lambda: self._ask(f"/?flaky=1&id={time.time()}") == "200",
            10,
        )
        with_it = self._load(1.0, path, 0.02)
        say(f"   with:     {summary(with_it)}")
        if any(not status.startswith("200") for status in with_it):
            raise DemoFailed("the flaky backend shows")
        good("each of these took up to three tries; the caller saw one answer")
        self.lab.delete([EXAMPLES / "retry.yaml"])

    def breaker(self) -> None:
        """Endpoints that fail are left out, and come back."""
        self._step(10, "A circuit breaker opens and closes", "breaker.yaml")
        wait("no more retries", lambda: self._ask("/?flaky=1&id=x" + str(time.time())) == "503", 10)
        self.lab.apply([EXAMPLES / "breaker.yaml"])
        opened = wait("the breaker opens", self._opens, 15)
        say(f"   open after failures: {summary(opened)} although both pods are well again")
        began = time.monotonic()
        wait("the breaker closes", lambda: self._ask("/") == "200", 15)
        good(f"closed {time.monotonic() - began:.1f} s later: requests pass again")
        self.lab.delete([EXAMPLES / "breaker.yaml"])

    def _opens(self) -> Counter[str] | None:
        self._load(0.5, "/?status=503", 0.01)
        seen = self._load(0.2, "/", 0.02)
        return seen if set(seen) == {"503"} else None

    def token(self) -> None:
        """A path that needs a token."""
        step(11, "A path that needs a token of the right issuer", "ambit lab apply -f -")
        key = ec.generate_private_key(ec.SECP256R1())
        claims = {"iss": _ISSUER, "sub": "anna", "exp": int(time.time()) + 600}
        pair = [jwt.encode(claims, k, "ES256", {"kid": "demo"}) for k in (key, _other())]
        self.lab.apply(token_policy(key))
        wait("the path is closed", lambda: self._ask("/cost") == "403", 15)
        right, wrong = (("-H", f"authorization: Bearer {token}") for token in pair)
        seen = {
            "without a token": (self._ask("/cost"), "403"),
            "a token signed by somebody else": (self._ask("/cost", *wrong), "401"),
            "the right token": (self._ask("/cost", *right), "200"),
            "another path, without a token": (self._ask("/"), "200"),
        }
        for what, (status, expected) in seen.items():
            say(f"   {what}: {status}")
            if status != expected:
                raise DemoFailed(f"{what}: {status}, not {expected}")
        good("checked by the waypoint; the application saw only what was let through")

    def run(self) -> None:
        """All steps."""
        self.waypoint()
        self.canary()
        self.mirror()
        self.retry()
        self.breaker()
        self.token()


def _other() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _only(counts: Counter[str], *expected: str) -> None:
    if set(counts) - set(expected):
        raise DemoFailed(f"expected nothing but {', '.join(expected)}: {summary(counts)}")
