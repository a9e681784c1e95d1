"""PeerAuthentication: which one counts where, and the policies that are made of them. Pure."""

from __future__ import annotations

from control_plane.translate.peer_authentication import (
    Defaults,
    PeerAuthentication,
    converted,
    index_levels,
    references,
    static_strict,
    superseded,
)
from control_plane.translate.pods import PodRecord
from mesh.findings import Condition
from mesh.manifest import Key
from mesh.model import Authorization


class Peers:
    """All PeerAuthentications. After puts, index() says what follows."""

    def __init__(self, root_namespace: str) -> None:
        self._root = root_namespace
        self._peers: dict[Key, PeerAuthentication] = {}
        self._index: dict[str, tuple[Defaults, tuple[PeerAuthentication, ...]]] = {}

    def get(self, key: Key) -> PeerAuthentication | None:
        """What one said last."""
        return self._peers.get(key)

    def put(self, key: Key, new: PeerAuthentication | None) -> None:
        """Replace one."""
        if new is None:
            self._peers.pop(key, None)
        else:
            self._peers[key] = new

    def index(self) -> tuple[dict[Key, Condition], dict[str, Authorization]]:
        """Find which one counts where; returns what each is told, and the policies by name."""
        self._index, conflicts = index_levels(self._peers.values(), self._root)
        conditions = {}
        for key, peer in self._peers.items():
            older = conflicts.get((peer.namespace, peer.name))
            conditions[key] = superseded(older) if older else peer.condition
        wanted = {}
        if self._peers:
            static = static_strict(self._root)
            wanted[static.key] = static
        for defaults, level in self._index.values():
            for peer in level:
                own = converted(peer, defaults)
                if own is not None:
                    wanted[own.key] = own
        return conditions, wanted

    def references(self, pod: PodRecord) -> list[str]:
        """Name the policies that a pod is judged by."""
        # The root's own entry has no policies with selectors: it serves namespaces without any.
        found = self._index.get(pod.namespace) or self._index.get(self._root) or (Defaults(), ())
        defaults, level = found
        return list(references(pod.labels, level, defaults, self._root))
