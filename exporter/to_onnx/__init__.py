"""Export a model as an ONNX graph."""
