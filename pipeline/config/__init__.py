"""The YAML's shape (schema) and the way from a file to a checked Config (load)."""
