"""Requests without pause from a pod: `http_load.py URL SECONDS KEEPALIVE FRESH [PAUSE]`.

KEEPALIVE clients use a connection as long as the server lets them, FRESH ones one for each
request; every client waits PAUSE seconds between two. A client does not try again. Prints a line
when it starts, and at the end, or on SIGTERM, one of JSON: ok, failed (a list of [seconds, error]),
slowest.
"""

from __future__ import annotations

import http.client
import json
import signal
import sys
import threading
import time
from urllib.parse import urlsplit


class Clients:
    """What all clients count together."""

    def __init__(self, url: str, seconds: float, pause: float) -> None:
        self.parts = urlsplit(url)
        self.began = time.monotonic()
        self.end = self.began + seconds
        self.pause = pause
        self.ok = 0
        self.slowest = 0.0
        self.failed: list[tuple[float, str]] = []
        self.lock = threading.Lock()

    def stop(self) -> None:
        """End after the requests that are under way."""
        self.end = 0.0

    def run(self, keep: bool) -> None:
        host, port = self.parts.hostname or "", self.parts.port or 80
        conn = http.client.HTTPConnection(host, port, timeout=15)
        while time.monotonic() < self.end:
            started = time.monotonic()
            error = ""
            try:
                headers = {} if keep else {"connection": "close"}
                conn.request("GET", self.parts.path or "/", headers=headers)
                response = conn.getresponse()
                response.read()
                if response.status != 200:
                    error = str(response.status)
            except (OSError, http.client.HTTPException) as e:
                error = f"{type(e).__name__} {e}"
                conn.close()
            if not keep:
                conn.close()
            with self.lock:
                self.slowest = max(self.slowest, time.monotonic() - started)
                if error:
                    self.failed.append((round(started - self.began, 2), error))
                else:
                    self.ok += 1
            time.sleep(self.pause)
        conn.close()


def main() -> None:
    url, seconds, keep, fresh, *pause = sys.argv[1:]
    clients = Clients(url, float(seconds), float(pause[0]) if pause else 0.01)
    kinds = [True] * int(keep) + [False] * int(fresh)
    threads = [threading.Thread(target=clients.run, args=(kind,)) for kind in kinds]
    signal.signal(signal.SIGTERM, lambda number, frame: clients.stop())
    print("started", flush=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(
        json.dumps(
            {"ok": clients.ok, "failed": clients.failed[:200], "slowest": round(clients.slowest, 2)}
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
