"""Both ends of the lab tests' traffic: `tool.py serve` in a server pod, the other verbs in clients.

Every verb prints one line of JSON and exits 0 when what it tried worked. Ports of `serve`:
9000 echo, 9001 digest at end of stream, 9002 speaks first, 9003 slow reader, 9004 source of bytes,
9005 says who the peer is.
"""

from __future__ import annotations

import errno
import hashlib
import json
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable

CHUNK = 1 << 18


def echo(s: socket.socket) -> None:
    while data := s.recv(CHUNK):
        s.sendall(data)


def digest(s: socket.socket) -> None:
    """Read to the end of the stream, then answer: only right if half-close is carried."""
    h, n = hashlib.blake2b(), 0
    while data := s.recv(CHUNK):
        h.update(data)
        n += len(data)
    s.sendall(json.dumps({"bytes": n, "digest": h.hexdigest()}).encode())


def greet(s: socket.socket) -> None:
    s.sendall(b"220 hello\n")
    echo(s)


def slow(s: socket.socket) -> None:
    """Read nothing for two seconds, then everything."""
    time.sleep(2)
    digest(s)


def source(s: socket.socket) -> None:
    """Send as many bytes as the first line asks for, then close."""
    n = int(s.makefile("rb").readline())
    block = bytes(range(256)) * (CHUNK // 256)
    while n > 0:
        s.sendall(block[: min(n, CHUNK)])
        n -= CHUNK


def whoami(s: socket.socket) -> None:
    peer, local = s.getpeername(), s.getsockname()
    s.sendall(json.dumps({"peer": peer[0], "port": peer[1], "local": local[0]}).encode())


SERVICES: dict[int, Callable[[socket.socket], None]] = {
    9000: echo,
    9001: digest,
    9002: greet,
    9003: slow,
    9004: source,
    9005: whoami,
}


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    request_queue_size = 1024
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: object, client_address: object) -> None:
        sys.stderr.write(f"{client_address}: {sys.exc_info()[1]!r}\n")


def serve() -> None:
    for port, service in SERVICES.items():

        class Handler(socketserver.BaseRequestHandler):
            run = staticmethod(service)

            def handle(self) -> None:
                self.run(self.request)

        server = Server(("::", port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Event().wait()


def connect(host: str, port: int, timeout: float = 30) -> socket.socket:
    return socket.create_connection((host, port), timeout)


def out(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def read_all(s: socket.socket) -> bytes:
    parts = []
    while data := s.recv(CHUNK):
        parts.append(data)
    return b"".join(parts)


def upload(host: str, port: int, mib: int) -> None:
    """Send mib MiB, end the stream, compare the digest that comes back."""
    s, h, block = connect(host, port, 120), hashlib.blake2b(), bytes(range(256)) * 4096
    for _ in range(mib):
        h.update(block)
        s.sendall(block)
    s.shutdown(socket.SHUT_WR)
    answer = json.loads(read_all(s))
    ok = answer == {"bytes": mib << 20, "digest": h.hexdigest()}
    out(ok=ok, **answer)
    sys.exit(0 if ok else 1)


def download(host: str, mib: int) -> None:
    """Fetch mib MiB from 9004 and compare every byte."""
    s, n, block = connect(host, 9004, 120), 0, bytes(range(256)) * (CHUNK // 256)
    s.sendall(f"{mib << 20}\n".encode())
    ok = True
    while data := s.recv(CHUNK):
        start = n % 256
        ok = ok and data == (block + block)[start : start + len(data)]
        n += len(data)
    out(ok=ok and n == mib << 20, bytes=n)
    sys.exit(0 if ok and n == mib << 20 else 1)


def parallel(host: str, count: int) -> None:
    """Open count connections, hold all, then exchange on each."""
    socks = [connect(host, 9000) for _ in range(count)]
    good = 0
    for i, s in enumerate(socks):
        s.sendall(f"{i:08d}".encode())
    for i, s in enumerate(socks):
        got = b""
        while len(got) < 8 and (d := s.recv(8 - len(got))):
            got += d
        good += got == f"{i:08d}".encode()
    out(good=good, count=count)
    sys.exit(0 if good == count else 1)


def first(host: str) -> None:
    s = connect(host, 9002)
    line = s.recv(100).decode()
    out(line=line)
    sys.exit(0 if line.startswith("220") else 1)


def who(host: str) -> None:
    s = connect(host, 9005)
    mine, theirs = s.getsockname(), s.getpeername()
    seen = json.loads(read_all(s))
    out(seen=seen, mine=[mine[0], mine[1]], peer=[theirs[0], theirs[1]])


def outcome(host: str, port: int) -> None:
    """How an attempt ends: connected, refused, reset, eof, timeout, ... and after how long."""
    start = time.monotonic()
    try:
        s = connect(host, port, 15)
        s.sendall(b"x")
        end = "data" if s.recv(1) else "eof"
    except TimeoutError:
        end = "timeout"
    except OSError as e:
        end = errno.errorcode.get(e.errno or 0, repr(e))
    out(end=end, seconds=round(time.monotonic() - start, 3))


def hold(host: str, seconds: float) -> None:
    """Keep one connection busy; say how it ended and when."""
    s, start, rounds = connect(host, 9000), time.monotonic(), 0
    end = "held"
    out(started=True)
    try:
        while time.monotonic() - start < seconds:
            s.sendall(b"tick")
            if not s.recv(4):
                end = "eof"
                break
            rounds += 1
            time.sleep(0.02)
    except OSError as e:
        end = errno.errorcode.get(e.errno or 0, repr(e))
    out(end=end, seconds=round(time.monotonic() - start, 3), rounds=rounds)


def loop(host: str, seconds: float) -> None:
    """Connect, exchange, close, again and again: counts what failed and at which step."""
    start, counts, worst = time.monotonic(), {"ok": 0, "connect": 0, "exchange": 0}, 0.0
    errors: set[str] = set()
    out(started=True)
    while time.monotonic() - start < seconds:
        t = time.monotonic()
        step = "connect"
        try:
            with connect(host, 9000, 20) as s:
                step = "exchange"
                s.sendall(b"ping")
                if s.recv(4) != b"ping":
                    raise ConnectionError("eof")
                counts["ok"] += 1
        except OSError as e:
            counts[step] += 1
            errors.add(f"{step}: {e!r}")
        worst = max(worst, time.monotonic() - t)
        time.sleep(0.005)
    out(**counts, worst=round(worst, 3), errors=sorted(errors)[:5])


VERBS: dict[str, Callable[..., None]] = {
    "serve": serve,
    "upload": lambda h, p, n: upload(h, int(p), int(n)),
    "download": lambda h, n: download(h, int(n)),
    "parallel": lambda h, n: parallel(h, int(n)),
    "first": first,
    "who": who,
    "outcome": lambda h, p: outcome(h, int(p)),
    "hold": lambda h, s: hold(h, float(s)),
    "loop": lambda h, s: loop(h, float(s)),
}

if __name__ == "__main__":
    VERBS[sys.argv[1]](*sys.argv[2:])
