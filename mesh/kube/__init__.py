"""The Kubernetes API as plain JSON: one client, one table entry per kind, one list-and-watch."""
