"""The kernel side: C by kind of hook, and the Python that loads it and keeps its maps."""

from bpf.datapath import Datapath, PodCapture, netns_cookie

__all__ = ["Datapath", "PodCapture", "netns_cookie"]
