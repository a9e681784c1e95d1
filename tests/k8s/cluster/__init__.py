"""A real two-node Kubernetes cluster on one machine, in network and mount namespaces of its own."""

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.cluster.errors import ClusterError

__all__ = ["Cluster", "ClusterError"]
