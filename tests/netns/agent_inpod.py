"""What runs inside a test's pods: `serve PORT` and `loop ADDRESS PORT`.

serve  answers every connection, IPv4 and IPv6, with one line, the peer as accept() shows it
loop   connects for as long as its standard input is open, reads what comes back, and then prints
       how often that went well and every way in which it did not
"""

from __future__ import annotations

import collections
import select
import socket
import sys
import time


def serve(port: int) -> None:
    with socket.create_server(
        ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128
    ) as server:
        sys.stdout.write("READY\n")
        sys.stdout.flush()
        while True:
            conn, peer = server.accept()
            with conn:
                conn.settimeout(5)
                conn.sendall(f"{peer[0].removeprefix('::ffff:')} {peer[1]}\n".encode())


def loop(address: str, port: int) -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    sys.stdout.write("READY\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], 0)[0]:
        doing = "connect"
        try:
            with socket.create_connection((address, port), timeout=10) as sock:
                doing = "read"
                outcomes["ok" if sock.recv(100) else "empty"] += 1
        except OSError as error:
            outcomes[f"{doing} {type(error).__name__}: {error}"] += 1
        time.sleep(0.002)
    sys.stdout.write(repr(dict(outcomes)) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        loop(sys.argv[2], int(sys.argv[3]))
