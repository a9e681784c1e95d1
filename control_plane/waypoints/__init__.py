"""Waypoints as the control plane keeps them: who is bound where, and what each one's Envoy gets."""
