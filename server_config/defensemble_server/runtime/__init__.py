"""Where Triton and its ONNX Runtime backend come from."""
