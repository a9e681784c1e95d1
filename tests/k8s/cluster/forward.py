"""The API server on this machine's loopback: a port here, connections into the cluster's namespace.

Runs as a process of its own, `python -m tests.k8s.cluster.forward NETNS ADDRESS PORT-FILE`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from functools import partial
from pathlib import Path

import yaml

from mesh.netns import enter
from tests.k8s.cluster.layout import API_PORT, Layout
from tests.k8s.cluster.processes import Part, Place, wait_until

_REPOSITORY = Path(__file__).resolve().parents[3]


class Forward:
    """Starts and ends that process."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._part = Part("forward", layout.logs)
        self._file = layout.root / "forward.port"

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return int(self._file.read_text())

    def start(self) -> None:
        """Start it, unless it runs, and have the admin's kubeconfig go through it."""
        if self._part.pid:
            return
        self._file.unlink(missing_ok=True)
        place = Place((self._layout.cp_cgroup,), "")
        words = [
            sys.executable,
            "-m",
            __name__,
            self._layout.cp_netns,
            self._layout.cp,
            str(self._file),
        ]
        self._part.start(place, words, {"PYTHONPATH": str(_REPOSITORY)})
        wait_until("the forward listens", 10, self._file.exists, self._part)
        admin = self._layout.kubeconfig
        found = yaml.safe_load(admin.read_text())
        found["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{self.port}"
        admin.write_text(yaml.safe_dump(found, sort_keys=False))

    def stop(self) -> None:
        """End it."""
        self._part.stop()


async def _serve(netns: str, address: str, file: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))  # made here, in the machine's namespace
    fd = os.open(f"/run/netns/{netns}", os.O_RDONLY)
    enter(fd)
    server = await asyncio.start_server(partial(_relay, address), sock=listener)
    unfinished = file.with_suffix(".new")
    unfinished.write_text(str(listener.getsockname()[1]))
    unfinished.rename(file)
    async with server:
        await server.serve_forever()


async def _relay(address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        far_reader, far_writer = await asyncio.open_connection(address, API_PORT)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
