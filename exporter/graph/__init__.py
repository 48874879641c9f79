"""ONNX graphs: reading them, and what they cost."""
