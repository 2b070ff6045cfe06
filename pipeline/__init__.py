"""Turns a trained model and one YAML file into a proven, versioned model repository."""

__version__ = "0.1.0"
