"""The model as Envoy's resources, first as plain proto-JSON dictionaries, packed at the end."""
