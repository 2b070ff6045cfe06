"""Source model -> model file: one module per format, each with ``export``."""
