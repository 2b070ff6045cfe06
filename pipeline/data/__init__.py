"""Labelled data, golden samples and the code of users."""
