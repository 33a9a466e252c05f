"""Build and verify TensorRT plans."""
