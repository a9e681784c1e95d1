"""What the lab reads of an object has the form it relies on. Pure.

Not a schema of Kubernetes: only the fields that the lab itself uses.
"""

from __future__ import annotations

from typing import Any, Final

Object = dict[str, Any]

# A shape is a type, a tuple of types, [shape of items], {field: shape} where "!field" is required
# and null counts as absent, or {"*": shape of values}.
_NUMBER: Final = (int, float)
_PORT: Final = (int, str)
_PROBE: Final = {
    "httpGet": {"!port": _PORT, "path": str, "httpHeaders": [{"!name": str, "!value": str}]},
    "tcpSocket": {"!port": _PORT},
    "exec": {"!command": [str]},
    "periodSeconds": _NUMBER,
    "timeoutSeconds": _NUMBER,
    "initialDelaySeconds": _NUMBER,
    "failureThreshold": int,
}
_CONTAINER: Final = {
    "!name": str,
    "command": [str],
    "args": [str],
    "env": [{"!name": str, "value": str, "valueFrom": {"fieldRef": {"!fieldPath": str}}}],
    "ports": [{"!containerPort": int, "name": str}],
    "readinessProbe": _PROBE,
    "livenessProbe": _PROBE,
    "workingDir": str,
}
_POD_SPEC: Final = {
    "!containers": [_CONTAINER],
    "initContainers": [_CONTAINER],
    "nodeName": str,
    "nodeSelector": {"*": str},
    "serviceAccountName": str,
    "hostNetwork": bool,
    "hostAliases": [{"!ip": str, "hostnames": [str]}],
    "restartPolicy": str,
    "terminationGracePeriodSeconds": _NUMBER,
    "hostname": str,
    "subdomain": str,
    "volumes": [
        {
            "!name": str,
            "projected": {"sources": [{"serviceAccountToken": {"path": str, "audience": str}}]},
        }
    ],
}
_SHAPES: Final[dict[str, Any]] = {
    "Pod": {"!spec": _POD_SPEC},
    "Deployment": {
        "!spec": {
            "replicas": int,
            "strategy": {"type": str},
            "!template": {
                "metadata": {"labels": {"*": str}, "annotations": {"*": str}},
                "!spec": _POD_SPEC,
            },
        }
    },
    "Service": {
        "spec": {
            "clusterIP": str,
            "clusterIPs": [str],
            "ipFamilies": [str],
            "ipFamilyPolicy": str,
            "selector": {"*": str},
            "ports": [{"!port": int, "targetPort": _PORT, "protocol": str, "name": str}],
            "type": str,
        }
    },
}


def problem(obj: Object) -> str:
    """Say what of an object the lab cannot work with; "" when there is nothing."""
    return _check(obj, _SHAPES.get(obj["kind"], {}), "")


def _check(value: Any, shape: Any, path: str) -> str:
    if isinstance(shape, list):
        return _check_list(value, shape[0], path)
    if isinstance(shape, dict):
        return _check_fields(value, shape, path)
    # bool is an int to Python, not to Kubernetes.
    if isinstance(value, bool) and shape is not bool:
        return f"{path} is {value!r}"
    return "" if isinstance(value, shape) else f"{path} is {value!r}"


def _check_list(value: Any, shape: Any, path: str) -> str:
    if not isinstance(value, list):
        return f"{path} is not a list"
    for i, item in enumerate(value):
        if found := _check(item, shape, f"{path}[{i}]"):
            return found
    return ""


def _check_fields(value: Any, shape: dict[str, Any], path: str) -> str:
    if not isinstance(value, dict):
        return f"{path} is not a mapping"
    if "*" in shape:
        fields = dict.fromkeys(value, shape["*"])
    else:
        fields = {name.removeprefix("!"): inner for name, inner in shape.items()}
    for name, inner in fields.items():
        where = f"{path}.{name}".lstrip(".")
        if value.get(name) is None:
            if f"!{name}" in shape:
                return f"{where} is missing"
        elif found := _check(value[name], inner, where):
            return found
    return ""
