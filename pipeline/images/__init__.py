"""From image file to tensor, and from scores to labels: stands alone, being copied into what is served."""
