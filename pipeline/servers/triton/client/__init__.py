"""Speaks to a running Triton: one server over either protocol, its shared memory, a prediction from a file."""
