"""This machine: what it has, what it lacks and what to type; the Triton releases it can build for."""
