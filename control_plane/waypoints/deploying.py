"""Who makes the objects that Gateways stand for, and what stands in the way.

In a cluster the leader does (control_plane.kubernetes.deployer); in a lab its manager, and the
control plane only says what is wrong with a Gateway's parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from control_plane.waypoints.holding import GatewayKey
from mesh.errors import BadInput
from waypoint.config.gateways import GatewayRecord
from waypoint.config.infrastructure import Runtime, objects

Gateways = Mapping[GatewayKey, GatewayRecord]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a Gateway's objects are not as they should be: one of the two."""

    parameters: str = ""  # its ConfigMap cannot be used
    problem: str = ""  # they cannot be written


class Deployer(Protocol):
    """Keeps Gateways' objects current."""

    def want(self, gateways: Gateways) -> None:
        """Say which Gateways there are; called after every change, so it has to be cheap."""
        ...

    def troubles(self) -> Mapping[GatewayKey, Trouble]:
        """Say what stands in the way."""
        ...


_NOBODY: Final = Runtime(("none",), "", "", "")


class FolderDeployer:
    """Looks at the parameters only. `read` gives an object by kind, namespace and name."""

    def __init__(self, read: Callable[[str, str | None, str], Mapping[str, Any] | None]) -> None:
        self._read = read
        self._troubles: dict[GatewayKey, Trouble] = {}

    def want(self, gateways: Gateways) -> None:
        """See Deployer."""
        self._troubles = {
            key: Trouble(parameters=wrong)
            for key, gateway in gateways.items()
            if gateway.parameters and (wrong := self._wrong(gateway))
        }

    def troubles(self) -> Mapping[GatewayKey, Trouble]:
        """See Deployer."""
        return self._troubles

    def _wrong(self, gateway: GatewayRecord) -> str:
        found = self._read("ConfigMap", gateway.namespace, gateway.parameters)
        if found is None:
            return f"there is no ConfigMap {gateway.namespace}/{gateway.parameters}"
        try:
            objects(gateway, _NOBODY, found.get("data") or {})
        except BadInput as e:
            return str(e)
        return ""
