"""Answers the CNI plugin: a pod of the mesh is answered for when it is captured, or refused.

Runs on the agent's loop, any number of requests at once; each is one connection and one task. A
plugin that hangs up is no longer answered, and what it brought is let go: the runtime will tear the
sandbox down and make another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

from mesh.errors import BadInput, MeshError
from node_agent import cni_protocol as cni
from node_agent.enquiry import Enquiry
from node_agent.metrics import Metrics
from node_agent.pod_object import PodObject
from node_agent.sandbox import check_addresses, check_namespace

log = logging.getLogger(__name__)

# The plugin waits 25 s (main.go), and says less about what is wrong than we can.
ADD_TIMEOUT: Final = 20.0
_REQUEST_TIMEOUT: Final = 5.0
_BACKLOG: Final = 512
_MAX_FDS: Final = 4
_UCRED: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Sandboxes(Protocol):
    """Where sandboxes go: node_agent/kubernetes_source.py."""

    def bring(self, pod: PodObject, sandbox: str, netns: int, addresses: tuple[str, ...]) -> str:
        """Take in a sandbox that is being made, and its descriptor; its namespace's path."""

    def drop(self, sandbox: str) -> None:
        """Let one go."""


class Capture(Protocol):
    """Who captures: node_agent/agent.py."""

    def changed(self) -> None:
        """Look again at what is wanted."""

    async def captured(self, uid: str, netns: str) -> None:
        """Return when a pod is captured in that namespace."""

    def obstacle(self, uid: str) -> str:
        """Say what keeps a pod from being captured."""

    def is_captured(self, uid: str) -> bool:
        """Say whether a pod is captured."""


class CniServer:
    """Listens on one unix SOCK_SEQPACKET path, for root only."""

    def __init__(
        self,
        path: Path,
        enquiry: Enquiry,
        sandboxes: Sandboxes,
        capture: Capture,
        metrics: Metrics,
        look: Callable[[], None],
        timeout: float = ADD_TIMEOUT,
    ) -> None:
        """`look`: has the runtime's sandboxes looked at soon."""
        self._path = path
        self._enquiry = enquiry
        self._sandboxes = sandboxes
        self._capture = capture
        self._metrics = metrics
        self._look = look
        self._timeout = timeout
        self._sock: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        """Bind and listen; a former agent's socket is replaced in one step."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        sock.bind(str(fresh))
        fresh.chmod(0o600)
        sock.listen(_BACKLOG)
        fresh.rename(self._path)
        self._sock = sock
        self._loop.add_reader(sock, self._accept)

    async def close(self) -> None:
        """Stop answering: who waits finds the connection closed, and asks the next agent."""
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self) -> None:
        assert self._sock is not None
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return
        sock.setblocking(False)
        task = self._loop.create_task(self._serve(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        fds: list[int] = []
        try:
            data = await self._receive(sock, fds)
            uid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            if uid != 0:
                raise BadInput(f"a request of user {uid}; only root may ask")
            if not data:
                return
            answer = await self._unless_hung_up(sock, self._answer(data, fds))
            if answer:
                sock.send(answer)
        except BadInput as error:
            log.warning("CNI: %s", error)
            with contextlib.suppress(OSError):
                sock.send(cni.encode_answer(error=str(error)))
        except OSError as error:
            log.info("CNI: the plugin cannot be answered: %s", error)
        finally:
            sock.close()
            for fd in fds:
                os.close(fd)

    async def _receive(self, sock: socket.socket, fds: list[int]) -> bytes:
        async with asyncio.timeout(_REQUEST_TIMEOUT):
            await self._readable(sock)
        data, received, flags, _ = socket.recv_fds(sock, cni.MAX_REQUEST + 1, _MAX_FDS)
        fds.extend(received)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise BadInput("a request that is too large")
        return data

    async def _readable(self, sock: socket.socket) -> None:
        ready = self._loop.create_future()
        self._loop.add_reader(sock, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            self._loop.remove_reader(sock)

    async def _unless_hung_up(self, sock: socket.socket, work: Awaitable[bytes]) -> bytes:
        """Give what comes of `work`; b"" and an end to it when the other end is closed first."""
        working = asyncio.ensure_future(work)
        hung_up = asyncio.ensure_future(self._readable(sock))
        try:
            await asyncio.wait({working, hung_up}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else b""
        finally:
            for task in (working, hung_up):
                task.cancel()
            await asyncio.gather(working, hung_up, return_exceptions=True)

    async def _answer(self, data: bytes, fds: list[int]) -> bytes:
        request = cni.decode_request_untrusted(data)
        began = time.monotonic()
        captured, error = False, ""
        try:
            captured = await self._perform(request, fds)
        except MeshError as caught:
            error = str(caught)
            log.warning("CNI: %s of pod %s: %s", request.command, request.title, error)
        outcome = "error" if error else "captured" if captured else "ok"
        self._metrics.cni_requests.labels(request.command, outcome).inc()
        if captured and request.command == cni.ADD:
            self._metrics.cni_duration.observe(time.monotonic() - began)
        return cni.encode_answer(captured, error)

    async def _perform(self, request: cni.Request, fds: list[int]) -> bool:
        match request.command:
            case cni.ADD:
                return await self._add(request, fds)
            case cni.DEL:
                self._drop(request.sandbox)
            case cni.CHECK:
                return await self._check(request)
            case cni.GC:
                self._look()
        return False

    async def _add(self, request: cni.Request, fds: list[int]) -> bool:
        """Have a pod captured if it belongs to the mesh; MeshError when it cannot be."""
        if len(fds) != 1:
            raise BadInput(f"ADD with {len(fds)} descriptors; its network namespace is needed")
        check_namespace(fds[0], "the descriptor of ADD")
        found = await self._enquiry.ask(request)
        if found is None or not found.wanted:
            return False
        check_addresses(fds[0], "of the sandbox", request.addresses)
        uid = found.pod.uid
        path = self._sandboxes.bring(found.pod, request.sandbox, fds.pop(), request.addresses)
        try:
            self._capture.changed()
            async with asyncio.timeout(self._timeout):
                await self._capture.captured(uid, path)
        except TimeoutError as error:
            self._drop(request.sandbox)
            raise MeshError(
                f"not captured within {self._timeout:.0f} s: {self._capture.obstacle(uid)}"
            ) from error
        except BaseException:
            self._drop(request.sandbox)
            raise
        return True

    async def _check(self, request: cni.Request) -> bool:
        found = await self._enquiry.ask(request)
        if found is None or not found.wanted:
            return False
        if not self._capture.is_captured(found.pod.uid):
            raise MeshError(f"not captured: {self._capture.obstacle(found.pod.uid)}")
        return True

    def _drop(self, sandbox: str) -> None:
        self._sandboxes.drop(sandbox)
        self._capture.changed()
