"""Guidehall: a scientific inference platform for research facilities."""

__version__ = "0.1.0"
