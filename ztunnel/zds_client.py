"""The proxy's side of ZDS: dials the node agent, takes pods and their descriptors, answers."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mesh.errors import BadInput
from mesh.wire import zds
from ztunnel import netns
from ztunnel.control import Control
from ztunnel.pods import close_fds
from ztunnel.state import address_key

log = logging.getLogger(__name__)

_PAUSE_FIRST: Final = 0.05  # before dialling again; doubles
_PAUSE_MOST: Final = 0.25  # a socket on this machine costs nothing to dial
_MAX_FDS: Final = 1 + len(zds.ROLES)


class ZdsClient:
    """Keeps one connection to the node agent."""

    def __init__(self, path: Path, control: Control, wake: Callable[[], None]) -> None:
        self._path = path
        self._control = control
        self._wake = wake
        self.ready = False  # the agent is there and its snapshot has been taken over

    async def run(self) -> None:
        """Serve the agent's requests, and dial again when it goes; until cancelled."""
        pause, said = _PAUSE_FIRST, ""
        while True:
            try:
                sock = await self._dial()
            except OSError as e:
                trouble = f"{self._path}: {e.strerror}"
            else:
                pause, said = _PAUSE_FIRST, ""
                trouble = await self._serve(sock)
            self.ready = False
            if trouble != said:
                log.warning("zds: %s; dialling again, serving what is known", trouble)
            said = trouble
            await asyncio.sleep(pause)
            pause = min(pause * 2, _PAUSE_MOST)

    async def _dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, str(self._path))
            sock.send(zds.encode_hello(zds.Hello(held_listeners=True)))
        except OSError:
            sock.close()
            raise
        return sock

    async def _serve(self, sock: socket.socket) -> str:
        """Answer requests until the connection ends; returns why it did."""
        log.info("zds: connected to the node agent at %s", self._path)
        named: set[str] = set()  # by this agent, since it was dialled
        try:
            while True:
                data, fds = await _receive(sock)
                if not data:
                    return "the node agent closed the connection"
                try:
                    request = zds.decode_request_untrusted(data)
                except BadInput as e:
                    close_fds(fds)
                    log.error("zds: %s", e)
                    sock.send(zds.encode_response(zds.Ack(str(e))))
                    continue
                error = await self._answer(request, fds, named)
                if error:
                    log.error("zds: %s", error)
                sock.send(zds.encode_response(zds.Ack(error)))
        except OSError as e:
            return f"the node agent cannot be reached: {e.strerror}"
        finally:
            sock.close()

    async def _answer(self, request: zds.Request, fds: list[int], named: set[str]) -> str:
        if isinstance(request, zds.Add):
            named.add(request.uid)
            return await self._add(request, fds)
        close_fds(fds)
        if isinstance(request, zds.Keep):
            named.add(request.uid)
            known = request.uid in self._control.pods
            return "" if known else f"pod {request.uid} is not known: it cannot be kept"
        if isinstance(request, zds.Del):
            named.discard(request.uid)
            self._control.remove(request.uid)
            return ""
        for uid in [uid for uid in self._control.pods if uid not in named]:
            self._control.remove(uid)
        self.ready = True
        log.info("zds: the node agent's snapshot is taken over: %d pods", len(self._control.pods))
        return ""

    async def _add(self, add: zds.Add, fds: list[int]) -> str:
        who = f"pod {add.namespace}/{add.name}"
        if len(fds) != 1 + len(add.listeners):
            close_fds(fds)
            return f"{who} came with {len(fds)} descriptors, not {1 + len(add.listeners)}"
        try:
            if not add.listeners:
                add, fds = self._with_own_listeners(add, fds)
            if self._control.demand is not None:
                for ip in netns.addresses(fds[0]):
                    self._control.demand.need(address_key(self._control.network, ip))
        except OSError as e:
            close_fds(fds)
            return f"{who}: {e.strerror}"
        return await self._control.add(add, fds, self._wake)

    def _with_own_listeners(self, add: zds.Add, fds: list[int]) -> tuple[zds.Add, list[int]]:
        opened = netns.open_listeners(fds[0])
        roles = tuple(role for role, _ in opened)
        add = zds.Add(
            add.uid,
            add.name,
            add.namespace,
            add.service_account,
            roles,
            zds.REDIRECT_NFTABLES,
        )
        return add, [*fds, *(sock.detach() for _, sock in opened)]


async def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Wait for one datagram and its descriptors; b"" at the end."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            data, ancillary, flags, _ = sock.recvmsg(
                zds.MAX_MESSAGE + 1,
                socket.CMSG_SPACE(4 * _MAX_FDS),
                socket.MSG_CMSG_CLOEXEC,
            )
        except BlockingIOError:
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(sock, _wake_once, readable)
            try:
                await readable
            finally:
                loop.remove_reader(sock)
            continue
        fds = _descriptors(ancillary)
        if flags & socket.MSG_CTRUNC:
            close_fds(fds)
            fds = []
            log.error("zds: descriptors were lost: this process has too many open (ulimit -n)")
        return data, fds


def _wake_once(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _descriptors(ancillary: list[tuple[int, int, Any]]) -> list[int]:
    fds: list[int] = []
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(raw) // 4 * 4
            fds.extend(int.from_bytes(raw[i : i + 4], sys.byteorder) for i in range(0, whole, 4))
    return fds
