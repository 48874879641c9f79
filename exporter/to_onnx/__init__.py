"""Model to ONNX graph."""
