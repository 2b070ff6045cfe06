"""Load on a running server: every request accounted for, every answer held against its own question's."""
