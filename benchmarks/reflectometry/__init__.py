"""Neutron reflectometry, mostly on the five-layer film that pyreflect makes its training curves of."""
