"""Model repositories on disk: writing versions of ours, and checking anybody's."""
