"""What a model file can be: made or built, opened, inspected; one folder per format."""
