"""ONNX files of any origin: read, checked and brought to a member's interface."""
