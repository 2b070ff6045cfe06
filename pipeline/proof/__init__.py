"""Proof that a running server answers what the model answers, and single predictions."""
