"""Checks of a repository that open its ONNX files."""
