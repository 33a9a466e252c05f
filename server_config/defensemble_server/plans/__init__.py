"""Whether TensorRT plans fit a machine."""
