"""The client's side of xDS: a sans-I/O delta subscription and the gRPC shell that carries it."""
