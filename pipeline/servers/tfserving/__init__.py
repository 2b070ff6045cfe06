"""TensorFlow Serving: its process or container, and a client."""
