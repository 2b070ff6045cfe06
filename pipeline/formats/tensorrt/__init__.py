"""The engine room: ONNX in, a TensorRT engine out, built in a child process and proven without running it."""
