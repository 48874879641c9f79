"""ONNX graph to TensorRT engine."""
