"""The control plane on a Kubernetes cluster: everything that talks to its API server."""
