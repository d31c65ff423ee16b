"""Ways from a client to a device: over gRPC, or in this process. Both speak `Link`."""
