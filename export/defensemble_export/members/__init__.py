"""Export members, from checkpoints or ONNX files, together with their export reports."""
