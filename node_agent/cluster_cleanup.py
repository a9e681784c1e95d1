"""Taking everything out of a cluster's node again: `ambit-node-agent --cleanup --kubernetes`.

The plugin's entry goes first, so that no pod waits for an agent that is not coming. What cannot be
undone does not keep the rest from it; the error at the end names all of it, and doing it again
is fine.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable

from bpf.datapath import Datapath
from mesh.errors import ConfigError, MeshError, Unavailable
from mesh.kube.api import APPLY, Api, ApiError
from node_agent import cgroups, nft
from node_agent.cluster_app import CNI_SOCKET, DAEMON_SET, places
from node_agent.cni_conf import Entry
from node_agent.cni_install import Installer
from node_agent.config import Cluster, Config
from node_agent.cri import Runtime
from node_agent.keeper import SharedKeeper
from node_agent.pod_object import PodObject, read
from node_agent.pod_status import MANAGER, patch
from node_agent.runtime_watch import newest, open_sandbox
from node_agent.sandbox import StepError

log = logging.getLogger(__name__)

_PAGE = 500


def clean(config: Config, cluster: Cluster) -> None:
    """Undo everything; MeshError at the end names what could not be undone."""
    failed: list[str] = []

    def attempt(what: str, step: Callable[[], None]) -> None:
        try:
            step()
        except (MeshError, OSError) as error:
            failed.append(f"{what}: {error}")

    nothing = Entry("", "", cluster.namespace, DAEMON_SET, (), "", "")
    attempt("CNI plugin", Installer(places(cluster), nothing).remove)
    attempt("capture", lambda: Datapath.remove(config.pins))
    attempt("held listeners", SharedKeeper(config.state).quit)
    attempt("cgroups", lambda: _free_proxies(config))
    pods = _marked(config, cluster, failed)
    attempt("rules", lambda: _remove_rules(cluster, pods))
    attempt("statuses", lambda: _remove_statuses(cluster, pods))
    for path in (config.zds, config.state / CNI_SOCKET):
        path.unlink(missing_ok=True)
    attempt("files", lambda: shutil.rmtree(cluster.lasting / "cni", ignore_errors=True))
    if failed:
        raise MeshError(f"not everything could be removed: {'; '.join(failed)}")
    log.info("node %s: nothing is captured any more; ztunnel can be stopped", config.node)


def _free_proxies(config: Config) -> None:
    try:
        top = config.cgroup or cgroups.root()
    except ConfigError:
        return
    cgroups.remove_own(top)


def _marked(config: Config, cluster: Cluster, failed: list[str]) -> list[PodObject]:
    """Give the node's pods whose objects say anything of us."""
    query = {"fieldSelector": f"spec.nodeName={config.node}", "limit": str(_PAGE)}
    pods: list[PodObject] = []
    try:
        api = Api.load(cluster.kubeconfig)
        while True:
            page = api.request("GET", "/api/v1/pods", query=query)
            pods += [read(item) for item in page.get("items") or []]
            if not (more := (page.get("metadata") or {}).get("continue")):
                break
            query["continue"] = str(more)
    except MeshError as error:
        failed.append(f"statuses: {error}")
    return [pod for pod in pods if pod.status is not None]


def _remove_rules(cluster: Cluster, pods: Iterable[PodObject]) -> None:
    """Take our rules out of the namespaces of pods that were captured by nftables."""
    runtime = Runtime(cluster.cri)
    try:
        ready = newest(runtime.ready())
        for pod in pods:
            facts = runtime.facts(ready[pod.uid]) if pod.uid in ready else None
            if facts is None or facts.host_network:
                continue
            try:
                netns = open_sandbox(facts)
            except StepError:
                continue  # no such namespace, no rules in it
            try:
                nft.remove(netns)
            finally:
                os.close(netns)
    finally:
        runtime.close()


def _remove_statuses(cluster: Cluster, pods: Iterable[PodObject]) -> None:
    api = Api.load(cluster.kubeconfig)
    failed = []
    for pod in pods:
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/status"
        query = {"fieldManager": MANAGER, "force": "true"}
        try:
            api.request("PATCH", path, query=query, body=patch(pod, None), content_type=APPLY)
        except ApiError as error:
            if error.status not in (404, 409):
                failed.append(f"{pod.title}: {error}")
        except Unavailable as error:
            failed.append(f"{pod.title}: {error}")
    if failed:
        raise MeshError("; ".join(failed))
