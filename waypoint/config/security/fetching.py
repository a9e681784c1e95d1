"""When which jwksUri is to be fetched (again), and what is known meanwhile. Pure: time is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from waypoint.config.security.jwks import Jwks, read_jwks

REFRESH: Final = 20 * 60.0  # seconds; issuers publish a new key long before they sign with it
_FIRST_RETRY: Final = 1.0
_LAST_RETRY: Final = 60.0


@dataclass(slots=True)
class _Document:
    due: float
    known: Jwks | None = None  # None: not fetched yet
    failures: int = 0
    under_way: bool = False


class Fetching:
    """Feed it what is wanted and what fetching gave.

    The last good keys of an issuer that does not answer any more stay: it is down more often than
    it revokes. Wanting its URI no more forgets them.
    """

    def __init__(self) -> None:
        self._documents: dict[str, _Document] = {}

    def want(self, uris: Iterable[str], now: float) -> None:
        """Say which documents are wanted; others are forgotten."""
        wanted = set(uris)
        for uri in self._documents.keys() - wanted:
            del self._documents[uri]
        for uri in wanted - self._documents.keys():
            self._documents[uri] = _Document(now)

    def begin(self, now: float, most: int) -> list[str]:
        """Choose up to `most` documents that are due; each is under way until `end`."""
        due = [
            (document.due, uri)
            for uri, document in self._documents.items()
            if not document.under_way and document.due <= now
        ]
        chosen = [uri for _, uri in sorted(due)[:most]]
        for uri in chosen:
            self._documents[uri].under_way = True
        return chosen

    def end(self, uri: str, result: Jwks, now: float) -> bool:
        """Take in what fetching gave; returns whether something else is known now."""
        document = self._documents.get(uri)
        if document is None:
            return False
        document.under_way = False
        error = result.error
        if not error:
            try:
                read_jwks(result.text)
            except ValueError as e:
                error = str(e)
        if not error:
            changed = document.known != result
            document.known, document.failures = result, 0
            document.due = now + REFRESH
            return changed
        document.failures += 1
        document.due = now + min(_FIRST_RETRY * 2 ** min(document.failures - 1, 10), _LAST_RETRY)
        if document.known is not None and not document.known.error:
            return False
        known = Jwks(error=error)
        changed = document.known != known
        document.known = known
        return changed

    def next_due(self) -> float | None:
        """Say when something is to be begun next; None: never."""
        return min((d.due for d in self._documents.values() if not d.under_way), default=None)

    def known(self) -> Mapping[str, Jwks]:
        """List what is known, by URI."""
        return {uri: d.known for uri, d in self._documents.items() if d.known is not None}
