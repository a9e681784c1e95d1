"""A page from the loopback of the namespace the caller is in."""

from __future__ import annotations

import http.client

from lab.errors import LabError


def get_page(port: int, path: str, timeout: float = 5.0) -> bytes:
    """Fetch it; raises LabError naming the port and the cause."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as e:
        raise LabError(f"port {port}{path}: {e}") from e
    finally:
        connection.close()
    if answer.status >= 400:
        text = body[:200].decode(errors="replace").strip()
        raise LabError(f"port {port}{path} answered {answer.status}: {text}")
    return body
