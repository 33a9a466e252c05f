"""Build ONNX graphs: trace, convert to fp16 and int8, fuse, and average an ensemble."""
