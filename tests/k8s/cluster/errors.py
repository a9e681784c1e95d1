"""What goes wrong with a cluster, for people."""


class ClusterError(Exception):
    """One sentence that names the part, the cause and where to look."""
