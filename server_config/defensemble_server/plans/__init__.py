"""Check whether TensorRT plans are compatible with a machine."""
