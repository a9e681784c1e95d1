"""The objects that make a Gateway a running waypoint. Pure.

ServiceAccount, Service, Deployment, HorizontalPodAutoscaler and PodDisruptionBudget, all owned by
the Gateway. `replicas` is left to the autoscaler, or to whoever scales the Deployment. What a user
wants otherwise goes into a ConfigMap (spec.infrastructure.parametersRef) whose keys name the
objects (serviceAccount, service, deployment, horizontalPodAutoscaler, podDisruptionBudget) and
whose values are merged over them, lists of named items by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.errors import BadInput
from mesh.manifest import parse_value
from mesh.ports import (
    INBOUND_HBONE,
    LABEL_DATAPLANE_MODE,
    TOKEN_AUDIENCE,
    ZTUNNEL_METRICS,
    ZTUNNEL_READY,
)
from waypoint.config.gateways import GATEWAY_CLASS, GATEWAY_NAME, GROUP, GatewayRecord

Object = dict[str, Any]

MANAGED: Final = "gateway.istio.io/managed"
MANAGED_BY: Final = "ambit.io-mesh-controller"  # CONTROLLER, as a label can hold it
PARTS: Final = {
    "serviceAccount": "ServiceAccount",
    "service": "Service",
    "deployment": "Deployment",
    "horizontalPodAutoscaler": "HorizontalPodAutoscaler",
    "podDisruptionBudget": "PodDisruptionBudget",
}
TOKEN_VOLUME: Final = "istio-token"
ROOT_VOLUME: Final = "istio-ca-root-cert"
GRACE: Final = 30  # seconds a pod gets to drain
_MAX_REPLICAS: Final = 5
_TARGET_CPU: Final = 80  # percent of what is requested


@dataclass(frozen=True, slots=True)
class Runtime:
    """How a waypoint's process is started here: in an image, or by a command of the host."""

    command: tuple[str, ...]
    control_plane: str  # https://host:port, of xDS and CA
    trust_domain: str
    cluster_id: str
    image: str = ""
    pull_policy: str = ""
    pull_secrets: tuple[str, ...] = ()
    token: str = "/var/run/secrets/tokens/istio-token"
    root: str = "/var/run/secrets/istio/root-cert.pem"
    env: tuple[tuple[str, str], ...] = ()


def objects(
    gateway: GatewayRecord, runtime: Runtime, parameters: Mapping[str, str] | None = None
) -> list[Object]:
    """Build a Gateway's objects. `parameters`: data of its ConfigMap. Raises BadInput."""
    made: dict[str, Object] = {}
    if gateway.own_account:
        made["serviceAccount"] = _made(gateway, "v1", "ServiceAccount", gateway.service_account)
    made["service"] = _service(gateway)
    made["deployment"] = _deployment(gateway, runtime)
    made["horizontalPodAutoscaler"] = _autoscaler(gateway)
    made["podDisruptionBudget"] = _budget(gateway)
    for part, text in sorted((parameters or {}).items()):
        where = f"ConfigMap {gateway.namespace}/{gateway.parameters}: data.{part}"
        if part not in PARTS:
            raise BadInput(f"{where}: no such object (known: {', '.join(PARTS)})")
        try:
            overlay = parse_value(str(text))
        except BadInput as e:
            raise BadInput(f"{where}: {e}") from e
        if overlay is None or part not in made:
            continue
        if not isinstance(overlay, Mapping):
            raise BadInput(f"{where}: must be a mapping, as a part of a {PARTS[part]}")
        made[part] = _merged(made[part], overlay, where)
    return list(made.values())


def selector(gateway: GatewayRecord) -> dict[str, str]:
    """Build the labels that a Gateway's pods have, and no others."""
    return {GATEWAY_NAME: gateway.name}


def _own_labels(gateway: GatewayRecord) -> dict[str, str]:
    return {
        GATEWAY_NAME: gateway.name,
        GATEWAY_CLASS: gateway.class_name,
        MANAGED: MANAGED_BY,
    }


def _made(gateway: GatewayRecord, version: str, kind: str, name: str, **fields: Any) -> Object:
    metadata: Object = {
        "name": name,
        "namespace": gateway.namespace,
        "labels": {**dict(gateway.labels), **_own_labels(gateway)},
    }
    if gateway.annotations:
        metadata["annotations"] = dict(gateway.annotations)
    if gateway.uid:
        metadata["ownerReferences"] = [
            {
                "apiVersion": f"{GROUP}/v1",
                "kind": "Gateway",
                "name": gateway.name,
                "uid": gateway.uid,
            }
        ]
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **fields}


def _service(gateway: GatewayRecord) -> Object:
    ports = [
        {"name": "status-port", "port": ZTUNNEL_READY, "appProtocol": "tcp", "protocol": "TCP"},
        {"name": "mesh", "port": INBOUND_HBONE, "appProtocol": "all", "protocol": "TCP"},
    ]
    spec = {
        "type": "ClusterIP",
        "ipFamilyPolicy": "PreferDualStack",
        "selector": selector(gateway),
        "ports": ports,
    }
    return _made(gateway, "v1", "Service", gateway.resource_name, spec=spec)


def _deployment(gateway: GatewayRecord, runtime: Runtime) -> Object:
    labels = {
        **dict(gateway.labels),
        **_own_labels(gateway),
        LABEL_DATAPLANE_MODE: "none",  # it is a proxy: its own traffic is not captured
        "sidecar.istio.io/inject": "false",
        "service.istio.io/canonical-name": gateway.name,
        "service.istio.io/canonical-revision": "latest",
    }
    annotations = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(ZTUNNEL_METRICS),
        "prometheus.io/path": "/stats/prometheus",
        **dict(gateway.annotations),
    }
    spec: Object = {
        "serviceAccountName": gateway.service_account,
        "terminationGracePeriodSeconds": GRACE,
        "containers": [_container(gateway, runtime)],
        "volumes": _volumes(),
    }
    if runtime.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in runtime.pull_secrets]
    if runtime.image:
        spec["securityContext"] = {
            "runAsNonRoot": True,
            "runAsUser": 1337,
            "runAsGroup": 1337,
            "fsGroup": 1337,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        spec["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(gateway)},
            }
        ]
    body = {
        "selector": {"matchLabels": selector(gateway)},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
        },
        "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec},
    }
    return _made(gateway, "apps/v1", "Deployment", gateway.resource_name, spec=body)


def _container(gateway: GatewayRecord, runtime: Runtime) -> Object:
    values = {
        "XDS_ADDRESS": runtime.control_plane,
        "CA_ADDRESS": runtime.control_plane,
        "XDS_ROOT_CA": runtime.root,
        "CA_ROOT_CA": runtime.root,
        "AUTH_TOKEN": runtime.token,
        "CLUSTER_ID": runtime.cluster_id,
        "TRUST_DOMAIN": runtime.trust_domain,
        "GATEWAY_NAME": gateway.name,
        "TERMINATION_GRACE_PERIOD_SECONDS": str(GRACE),
        **dict(runtime.env),
    }
    fields = {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "INSTANCE_IP": "status.podIP",
        "NODE_NAME": "spec.nodeName",
        "SERVICE_ACCOUNT": "spec.serviceAccountName",
    }
    out: Object = {
        "name": "waypoint",
        "command": list(runtime.command),
        "env": [
            *({"name": k, "valueFrom": {"fieldRef": {"fieldPath": p}}} for k, p in fields.items()),
            *({"name": k, "value": v} for k, v in values.items()),
        ],
        "ports": [
            {"name": "mesh", "containerPort": INBOUND_HBONE, "protocol": "TCP"},
            {"name": "status-port", "containerPort": ZTUNNEL_READY, "protocol": "TCP"},
            {"name": "metrics", "containerPort": ZTUNNEL_METRICS, "protocol": "TCP"},
        ],
        "readinessProbe": _probe(period=1 if not runtime.image else 2, failures=2),
        "resources": {
            "requests": {"cpu": "100m", "memory": "192Mi"},
            "limits": {"memory": "1Gi"},
        },
        "volumeMounts": [
            {"name": TOKEN_VOLUME, "mountPath": "/var/run/secrets/tokens", "readOnly": True},
            {"name": ROOT_VOLUME, "mountPath": "/var/run/secrets/istio", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    if runtime.image:
        out["image"] = runtime.image
        out["startupProbe"] = _probe(period=1, failures=120)
        out["securityContext"] = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    if runtime.pull_policy:
        out["imagePullPolicy"] = runtime.pull_policy
    return out


def _probe(period: int, failures: int) -> Object:
    return {
        "httpGet": {"path": "/healthz/ready", "port": ZTUNNEL_READY},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def _volumes() -> list[Object]:
    token = {"audience": TOKEN_AUDIENCE, "expirationSeconds": 43200, "path": "istio-token"}
    return [
        {"name": TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": ROOT_VOLUME, "configMap": {"name": "istio-ca-root-cert"}},
        {"name": "tmp", "emptyDir": {}},
    ]


def _autoscaler(gateway: GatewayRecord) -> Object:
    metric = {
        "type": "Resource",
        "resource": {
            "name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": _TARGET_CPU},
        },
    }
    spec = {
        "scaleTargetRef": {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "name": gateway.resource_name,
        },
        "minReplicas": 1,
        "maxReplicas": _MAX_REPLICAS,
        "metrics": [metric],
    }
    kind = "HorizontalPodAutoscaler"
    return _made(gateway, "autoscaling/v2", kind, gateway.resource_name, spec=spec)


def _budget(gateway: GatewayRecord) -> Object:
    # Not minAvailable: with one replica that would hold up every drain of a node.
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": selector(gateway)}}
    kind = "PodDisruptionBudget"
    return _made(gateway, "policy/v1", kind, gateway.resource_name, spec=spec)


# ---- a user's wishes over it -----------------------------------------------------------------

# What ties the objects together and to their Gateway.
_KEPT: Final = (
    ("apiVersion",),
    ("kind",),
    ("metadata", "name"),
    ("metadata", "namespace"),
    ("metadata", "ownerReferences"),
    ("spec", "selector"),
)


def _merged(base: Object, overlay: Mapping[str, Any], where: str) -> Object:
    for path in _KEPT:
        if _at(overlay, path) is not None and _at(overlay, path) != _at(base, path):
            raise BadInput(f"{where}: {'.'.join(path)} cannot be changed")
    out: Object = _merge(base, overlay)
    labels = out["metadata"].setdefault("labels", {})
    labels.update({k: v for k, v in base["metadata"]["labels"].items() if k in _OURS})
    template = _at(out, ("spec", "template", "metadata", "labels"))
    if isinstance(template, dict):
        own = base["spec"]["template"]["metadata"]["labels"]
        template.update({k: v for k, v in own.items() if k in _OURS})
    return out


_OURS: Final = (GATEWAY_NAME, GATEWAY_CLASS, MANAGED, LABEL_DATAPLANE_MODE)


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _merge(base: Any, overlay: Any) -> Any:
    """Merge as a strategic merge patch: null removes, lists of named items merge by name."""
    if isinstance(base, Mapping) and isinstance(overlay, Mapping):
        out = dict(base)
        for k, v in overlay.items():
            if v is None:
                out.pop(k, None)
            else:
                out[k] = _merge(base[k], v) if k in base else v
        return out
    if _named(base) and _named(overlay):
        by_name = {item["name"]: item for item in base}
        for item in overlay:
            by_name[item["name"]] = _merge(by_name.get(item["name"], {}), item)
        return list(by_name.values())
    return overlay


def _named(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, Mapping) and isinstance(item.get("name"), str) for item in value
    )
