"""The HTTP gateway: HTTP/JSON in, gRPC out. No science, no database."""
