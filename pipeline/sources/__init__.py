"""Where the model comes from: trained here, a checkpoint, a library, user code, TensorFlow, or a file as given."""
