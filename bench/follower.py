"""Asks until a change is seen; runs in the client's pod: python -m bench.follower.

A line of JSON on stdin is a list of watches: {"id", "host", "port", "status", "header": [name,
value] or null}. Each has a connection of its own, which asks until an answer has that status and
header: without a pause where it is alone, else so seldom that the machine is not full of asking.
On stdout: {"ready": N} when all have been answered once, then {"id", "at", "asked"} as each is
through (`at`: CLOCK_MONOTONIC seconds), or {"id", "error"}.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from typing import Any, Final

_PATIENCE: Final = 20.0
_PAUSE: Final = 0.002  # seconds between two requests, for each other watch


class Followers:
    """Watches that run at once, and one stdout for them."""

    def __init__(self, watches: list[dict[str, Any]]) -> None:
        self._lock = threading.Lock()
        self._waiting = len(watches)
        self._pause = _PAUSE * (len(watches) - 1)
        self._threads = [threading.Thread(target=self._follow, args=(w,)) for w in watches]

    def run(self) -> None:
        """Return when all are through."""
        count = len(self._threads)
        for thread in self._threads:
            thread.start()
        while self._waiting and any(t.is_alive() for t in self._threads):
            time.sleep(0.001)
        self._say({"ready": count})
        for thread in self._threads:
            thread.join()

    def _say(self, what: dict[str, Any]) -> None:
        with self._lock:
            print(json.dumps(what), flush=True)

    def _follow(self, watch: dict[str, Any]) -> None:
        deadline = time.monotonic() + _PATIENCE
        connection = http.client.HTTPConnection(watch["host"], watch["port"], timeout=5)
        asked = 0
        try:
            while time.monotonic() < deadline:
                connection.request("GET", "/")
                answer = connection.getresponse()
                answer.read()
                asked += 1
                if asked == 1:
                    with self._lock:
                        self._waiting -= 1
                if is_wanted(watch, answer.status, dict(answer.getheaders())):
                    self._say({"id": watch["id"], "at": time.monotonic(), "asked": asked})
                    return
                time.sleep(self._pause)
            error = f"not seen within {_PATIENCE:g} s"
        except (OSError, http.client.HTTPException) as e:
            error = repr(e)
        finally:
            connection.close()
        self._say({"id": watch["id"], "error": error})


def is_wanted(watch: dict[str, Any], status: int, headers: dict[str, str]) -> bool:
    """Say whether an answer is what a watch waits for."""
    if status != watch["status"]:
        return False
    if watch["header"] is None:
        return True
    name, value = watch["header"]
    return headers.get(str(name)) == str(value)


def main() -> None:
    """Serve until stdin ends."""
    for line in sys.stdin:
        Followers(json.loads(line)).run()


if __name__ == "__main__":
    main()
