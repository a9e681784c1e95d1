"""The process in a waypoint's pod: runs Envoy, holds its key, relays its configuration."""
