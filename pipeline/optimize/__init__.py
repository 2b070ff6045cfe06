"""What is done to an exported file before it is judged."""
