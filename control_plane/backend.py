"""What a mesh is made of where it runs: objects, statuses, callers and a CA. Here: from files."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from control_plane.authn import SignedTokens, TokenVerifier
from control_plane.ca.current import CurrentCa
from control_plane.ca.folder import FolderCa
from control_plane.engine import Source
from control_plane.options import FolderOptions, Options
from control_plane.status import StatusSink, StatusWriter
from control_plane.waypoints.deploying import Deployer, FolderDeployer
from mesh.errors import ConfigError
from mesh.manifest import Key
from mesh.store import FolderStore

log = logging.getLogger(__name__)

Clock = Callable[[], datetime.datetime]
_LOOK: Final = 1.0  # seconds between looks at the CA's files


class Backend(Protocol):
    """All of them, with one beginning and one end."""

    @property
    def source(self) -> Source:
        """Where objects come from."""

    @property
    def status(self) -> StatusSink:
        """Where conditions go."""

    @property
    def deployer(self) -> Deployer:
        """Who makes the objects of Gateways."""

    def refer(self, keys: Iterable[Key]) -> None:
        """Say which ConfigMaps and Secrets are referred to, where not all of them are read."""

    @property
    def verifier(self) -> TokenVerifier:
        """Who proves callers."""

    async def start(self) -> None:
        """Return when all objects are read and the CA can sign."""

    async def stop(self) -> None:
        """Give everything back."""


class FolderBackend:
    """Files: the lab. Raises ConfigError for those that cannot be used."""

    def __init__(
        self, options: Options, where: FolderOptions, current: CurrentCa, clock: Clock
    ) -> None:
        self._current = current
        self._ca = FolderCa(where.data, where.ca_dir, options.trust_domain, clock)
        current.replace(self._ca.ca)
        self.verifier = SignedTokens(where.token_key, options.token_audience)
        try:
            self.source = FolderStore(where.objects)
        except OSError as e:
            raise ConfigError(f"--objects {where.objects}: {e.strerror or e}") from e
        self.status = StatusWriter(self.source)
        self.deployer = FolderDeployer(self.source.get)
        self._looking: asyncio.Task[None] | None = None

    def refer(self, keys: Iterable[Key]) -> None:
        """See Backend; the folder is read whole."""

    async def start(self) -> None:
        """See Backend."""
        self._looking = asyncio.get_running_loop().create_task(self._look())

    async def stop(self) -> None:
        """See Backend."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        self.source.close()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            new = await asyncio.to_thread(self._ca.reload)
            if new is not None:
                self._current.replace(new)
