"""The kernel side: one C file per kind of hook, and the Python that loads them and keeps their maps."""

from bpf.datapath import Datapath, PodCapture, netns_cookie

__all__ = ["Datapath", "PodCapture", "netns_cookie"]
