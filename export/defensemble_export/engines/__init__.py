"""TensorRT plans: how they are built, verified and kept."""
