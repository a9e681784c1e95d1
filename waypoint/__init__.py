"""Waypoints: L7 for a namespace, a service or a pod, on Envoy.

waypoint.config turns objects into Envoy's configuration and into status; it is pure, and the
control plane runs it. waypoint.agent is the process beside Envoy in a waypoint's pod.
"""
