"""Read and check ONNX files of any origin, and rewrite them to the interface of a member."""
