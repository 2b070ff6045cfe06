"""Servers for a model repository, and the stand-in backends that run inside them."""
