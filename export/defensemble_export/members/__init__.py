"""Models of an ensemble, from a checkpoint or from an ONNX file, with their report."""
