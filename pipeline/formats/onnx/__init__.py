"""ONNX: exported from the source model, opened in ONNX Runtime."""
