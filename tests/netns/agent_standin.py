"""A stand-in for ztunnel: speaks ZDS, accepts on the listeners it is given, and says what it saw.

Usage: agent_standin.py ZDS-SOCKET [--plain] [--refuse FILE]
    --plain   knows only the common contract: opens its own listeners inside the pod's namespace
    --refuse  while FILE exists, adds are answered with its text as the error
Outbound connections get one line, `OUT <original destination> <peer>`; inbound ones are relayed to
the application with the client's address kept in the way the add's `redirect` asks for.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path

from mesh import ports
from mesh.errors import MeshError
from mesh.wire import zds
from node_agent.sandbox import inside, listen

IP_TRANSPARENT = 19  # linux/in.h
IPV6_TRANSPARENT = 75  # linux/in6.h
Address = tuple[str, int]


def unmapped(address: str) -> str:
    return address.removeprefix("::ffff:")


def original(sock: socket.socket) -> Address:
    """Ask for the original destination as any proxy does."""
    local = sock.getsockname()[0]
    if ":" in unmapped(local):
        raw = sock.getsockopt(socket.IPPROTO_IPV6, ports.SO_ORIGINAL_DST, 28)
        return socket.inet_ntop(socket.AF_INET6, raw[8:24]), struct.unpack("!H", raw[2:4])[0]
    raw = sock.getsockopt(socket.SOL_IP, ports.SO_ORIGINAL_DST, 16)
    return socket.inet_ntoa(raw[4:8]), struct.unpack("!H", raw[2:4])[0]


def claim_source(sock: socket.socket, client: Address, redirect: int) -> None:
    """Have the application see the client's address."""
    six = sock.family == socket.AF_INET6
    if redirect == zds.REDIRECT_EBPF:
        if six:
            raw = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", client[1], 0)
            raw += socket.inet_pton(socket.AF_INET6, client[0]) + bytes(4)
        else:
            raw = struct.pack("=H", socket.AF_INET) + struct.pack("!H", client[1])
            raw += socket.inet_aton(client[0]) + bytes(8)
        sock.setsockopt(socket.SOL_IP, ports.SO_REAL_SOURCE, raw)
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, ports.PACKET_MARK)
    if six:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    sock.bind((client[0], 0))


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


class Pod:
    """One served pod; a thread for each listener and for each connection."""

    def __init__(self, add: zds.Add, fds: list[int]) -> None:
        self.netns = fds[0]
        self.redirect = add.redirect or zds.REDIRECT_NFTABLES
        held = dict(zip(add.listeners, fds[1:], strict=True)) or listen(self.netns)
        self.listeners = {role: socket.socket(fileno=fd) for role, fd in held.items()}
        for role, listener in self.listeners.items():
            threading.Thread(target=self.accept, args=(role, listener), daemon=True).start()

    def accept(self, role: int, listener: socket.socket) -> None:
        while True:
            try:
                listener.settimeout(0.2)
                conn, peer = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            conn.settimeout(10)
            client = (unmapped(peer[0]), peer[1])
            threading.Thread(target=self.serve, args=(role, conn, client), daemon=True).start()

    def serve(self, role: int, conn: socket.socket, client: Address) -> None:
        with conn, contextlib.suppress(OSError):
            if role == zds.INBOUND_HBONE:
                conn.sendall(b"HBONE\n")
                return
            if role == zds.INBOUND_PLAIN and self.redirect == zds.REDIRECT_EBPF:
                name = conn.getsockname()  # sk_lookup rewrites nothing
                target = (unmapped(name[0]), name[1])
            else:
                target = original(conn)
            if target[0] in (ports.PROBE_V4, ports.PROBE_V6) or target[1] == ports.PROBE_PORT:
                return
            if role in (zds.OUTBOUND_V4, zds.OUTBOUND_V6):
                conn.sendall(f"OUT {target[0]} {target[1]} {client[0]}\n".encode())
                return
            self.relay(conn, target, client)

    def relay(self, conn: socket.socket, target: Address, client: Address) -> None:
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        with inside(self.netns):
            app = socket.socket(family, socket.SOCK_STREAM)
        with app:
            app.settimeout(10)
            claim_source(app, client, self.redirect)
            app.connect(target)
            back = threading.Thread(target=pump, args=(app, conn), daemon=True)
            back.start()
            pump(conn, app)
            back.join(10)

    def close(self) -> None:
        for listener in self.listeners.values():
            listener.close()
        os.close(self.netns)


def handle(pods: dict[str, Pod], request: zds.Request, fds: list[int], refuse: Path | None) -> str:
    """Do what a request says; the returned text is the ack's error."""
    if isinstance(request, zds.Add):
        if refuse and refuse.exists():
            for fd in fds:
                os.close(fd)
            return refuse.read_text()
        if request.uid in pods:
            pods.pop(request.uid).close()
        try:
            pods[request.uid] = Pod(request, fds)
        except (OSError, MeshError) as error:
            return f"cannot serve: {error}"
    elif isinstance(request, zds.Del):
        if request.uid not in pods:
            return "unknown workload"
        pods.pop(request.uid).close()
    elif isinstance(request, zds.SnapshotSent):
        sys.stdout.write("SNAPSHOT\n")
        sys.stdout.flush()
    return ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("zds")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--refuse", type=Path)
    args = parser.parse_args()
    pods: dict[str, Pod] = {}
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as conn:
            try:
                conn.connect(args.zds)
                conn.send(zds.encode_hello(zds.Hello(held_listeners=not args.plain)))
                while True:
                    data, fds, _, _ = socket.recv_fds(conn, zds.MAX_MESSAGE, 8)
                    if not data:
                        break
                    request = zds.decode_request_untrusted(data)
                    error = handle(pods, request, fds, args.refuse)
                    conn.send(zds.encode_response(zds.Ack(error)))
            except OSError:
                pass
        time.sleep(0.1)


if __name__ == "__main__":
    main()
