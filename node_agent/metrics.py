"""Every metric of the node agent, in one place for the code, the docs and the dashboards."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from node_agent.redirect import EBPF, NFTABLES

STATES: Final = (
    "absent",
    "listening",
    "announced",
    "captured",
    "proved",
    "releasing",
    "failed",
)
# From a few milliseconds (everything is there) to the point where somebody asks why.
_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The agent's metrics, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._mode = Gauge(
            "ambit_redirect_mode",
            "1 for the way in which pods of this node are captured",
            ["mode"],
            registry=registry,
        )
        self._hook = Gauge(
            "ambit_hook_loaded",
            "1 for each kernel hook that is loaded, 0 for one that does not load here",
            ["hook"],
            registry=registry,
        )
        self._pods = Gauge(
            "ambit_pods", "Pods of this node by enrolment state", ["state"], registry=registry
        )
        self.enrolment = Histogram(
            "ambit_enrolment_duration_seconds",
            "From wanting a pod captured to having proved it",
            buckets=_BUCKETS,
            registry=registry,
        )
        self.step_failures = Counter(
            "ambit_enrolment_failures",
            "Failed steps of enrolment, by the reason that the pod's condition shows",
            ["reason"],
            registry=registry,
        )
        self.events = Counter(
            "nodeagent_reconcile_events",
            "Pods taken in, taken out, and found gone",
            ["type"],
            registry=registry,
        )
        self.ztunnel_connected = Gauge(
            "ztunnel_connected", "Proxies connected over ZDS", registry=registry
        )
        self._add_cluster(registry)
        for kind in ("add", "remove", "gone"):
            self.events.labels(kind)

    def _add_cluster(self, registry: CollectorRegistry) -> None:
        """What only a cluster's agent counts."""
        self.watches = Counter(
            "ambit_kube_watches",
            "Watches of the API server opened again, and listed again from the start",
            ["kind", "what"],
            registry=registry,
        )
        self.cni_requests = Counter(
            "ambit_cni_requests",
            "Requests of the CNI plugin, by command and what came of it",
            ["command", "outcome"],
            registry=registry,
        )
        self.cni_duration = Histogram(
            "ambit_cni_add_duration_seconds",
            "How long a pod's start waited for its capture",
            buckets=_BUCKETS,
            registry=registry,
        )
        self.cni_installed = Gauge(
            "ambit_cni_installed",
            "1 while the CNI plugin is in the node's chain",
            registry=registry,
        )

    def set_mode(self, mode: str, hooks: Mapping[str, bool]) -> None:
        """Say how pods are captured and which hooks are loaded."""
        for known in (EBPF, NFTABLES):
            self._mode.labels(known).set(known == mode)
        for hook, loaded in hooks.items():
            self._hook.labels(hook).set(loaded)

    def set_states(self, states: Iterable[str]) -> None:
        """Say how many pods are in each state."""
        tally = Tally(states)
        for state in STATES:
            self._pods.labels(state).set(tally[state])
