"""Build a TensorRT engine from an ONNX graph."""
