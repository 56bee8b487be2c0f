"""Measurements, side by side with peers where there are any. Tests never assert them."""
