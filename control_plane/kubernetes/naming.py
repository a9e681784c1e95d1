"""Names that the control plane writes under, in one place: others look for them."""

from __future__ import annotations

from typing import Final

FIELD_MANAGER: Final = "ambit-control-plane"
LEASE: Final = "ambit-control-plane"
COMPONENT: Final = "ambit-control-plane"  # the source of Events
# `ambit uninstall --purge` removes what has this, and nothing of another mesh.
LABELS: Final = {"app.kubernetes.io/part-of": "ambit"}
CONFIG_MAP: Final = "istio-ca-root-cert"
SELF_SIGNED: Final = "istio-ca-secret"
PLUGGED: Final = "cacerts"
WAYPOINT_CLASSES: Final = frozenset({"ambit-waypoint", "istio-waypoint"})
CONTROLLERS: Final = frozenset({"ambit.io/mesh-controller", "istio.io/mesh-controller"})
