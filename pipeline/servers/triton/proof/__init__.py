"""Proves that a running Triton answers what the models answer."""
