"""Taking everything out of a node again: what `ambit-node-agent --cleanup` does."""

from __future__ import annotations

import logging
import os

from bpf.datapath import Datapath
from mesh.errors import MeshError
from node_agent import nft
from node_agent.config import Config, Folders
from node_agent.folder_source import FolderSource
from node_agent.keeper import Keeper
from node_agent.pods import Sandboxes
from node_agent.sandbox import StepError, open_netns
from node_agent.source import DesiredPod

log = logging.getLogger(__name__)


def clean(config: Config, folders: Folders) -> None:
    """Release every pod, say so in its status, then let go of the listeners.

    One pod that cannot be cleaned does not keep the others from it; MeshError at the end names it.
    """
    assert config.cgroup is not None  # parse() has seen to it
    source = FolderSource(folders.objects, folders.runtime)
    keeper = Keeper(config.state / "holder.sock")
    sandboxes = Sandboxes(keeper, config.cgroup)
    pods = source.pods()
    found = keeper.find()
    if found:
        sandboxes.adopt(pods, source.expects)
    Datapath.remove(config.pins)
    failed = []
    for pod in pods.values():
        try:
            remove_rules(pod, sandboxes)
            source.report(pod, None)
        except (MeshError, OSError) as error:
            failed.append(f"{pod.title}: {error}")
    sandboxes.detach()
    source.close()
    if found:
        keeper.quit()
    config.zds.unlink(missing_ok=True)
    if failed:
        raise MeshError(f"not everything could be removed: {'; '.join(failed)}")
    log.info("node %s: nothing is captured any more; ztunnel can be stopped", config.node)


def remove_rules(pod: DesiredPod, sandboxes: Sandboxes) -> None:
    """Take the rules out of a pod's namespace, if it has any."""
    sandbox = sandboxes.get(pod.uid)
    if sandbox is not None:
        nft.remove(sandbox.netns)
        return
    try:
        netns = open_netns(pod)
    except StepError:
        return  # no such namespace, no rules in it
    try:
        nft.remove(netns)
    finally:
        os.close(netns)
