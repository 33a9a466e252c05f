"""Find or install Triton and build its ONNX Runtime backend."""
