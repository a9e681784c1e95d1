"""Objects in, Envoy resources and status out; no clock, no socket."""
