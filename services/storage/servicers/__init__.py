"""What gRPC calls: decode, call the use case, encode."""
