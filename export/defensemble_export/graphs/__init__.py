"""ONNX graphs: traced, converted to fp16 and int8, fused, and those that average an ensemble."""
