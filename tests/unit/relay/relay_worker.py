"""The relay worker, entered with a resolver for machines without hooks: the original destination
of what arrives at a listener is written beside the listener's port in DESTINATIONS (JSON)."""

from __future__ import annotations

import json
import os
import socket
import sys

from ztunnel.relay import worker
from ztunnel.relay.capture import EBPF, Capture
from ztunnel.relay.context import Settings


class Table(Capture):
    """Original destinations by listener port; kept in a file so that tests may add to it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def _find(self, sock: socket.socket) -> tuple[str, int] | None:
        with open(self.path) as f:
            found = json.load(f).get(str(sock.getsockname()[1]))
        return (found[0], found[1]) if found else None

    def outbound(self, sock: socket.socket) -> tuple[str, int] | None:
        return self._find(sock)

    def inbound(self, sock: socket.socket) -> tuple[str, int] | None:
        return self._find(sock)

    def impersonate(self, sock: socket.socket, client: tuple[str, int]) -> None:
        """The application sees the relay: there are no hooks here."""


if __name__ == "__main__":
    worker.serve(int(sys.argv[1]), {EBPF: Table(os.environ["DESTINATIONS"])}, Settings.of_process())
