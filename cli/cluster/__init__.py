"""A Kubernetes cluster as an operator's commands see it.

`kube.py` talks to the API server, `target.py` asks the mesh's own processes through it; everything
else decides and does no I/O.
"""
