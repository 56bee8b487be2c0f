"""Decode, call, encode: one module for each gRPC service."""
