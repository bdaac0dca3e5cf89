"""Measurements against other programs. Not part of the product: `make bench` runs them."""
