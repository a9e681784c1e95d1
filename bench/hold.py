"""Run inside the client pod: open N connections, use each once, hold them until stdin ends."""

from __future__ import annotations

import socket
import sys


def main() -> None:
    """Arguments: host, port, number of connections. Prints "held N" when all have answered."""
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    held = []
    for _ in range(count):
        connection = socket.create_connection((host, port), timeout=10)
        connection.sendall(request)
        if not connection.recv(65536).startswith(b"HTTP/1.1 200"):
            sys.exit("no answer")
        held.append(connection)
    print(f"held {len(held)}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
