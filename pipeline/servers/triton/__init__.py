"""Triton: configurations, the embedded server and its stand-in backends, its watch."""
