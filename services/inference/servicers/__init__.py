"""One file for each gRPC service: decode, call, encode."""
