"""From a torch module to a graph: examples, what tracing sees, and what it would freeze."""
