"""Parse stored graphs. A mask-aware file is read as the plain graph that it contains, which is the source of every other form."""

from __future__ import annotations

import onnx
from google.protobuf.message import DecodeError

from ..errors import ExportError
from .mask_aware import plain_onnx


def model_from_bytes(content: bytes, name: str) -> onnx.ModelProto:
    """Parse the ONNX file of the model `name`, or raise an ExportError.

    Returns:
        The plain graph: if the file is mask-aware, the body of its function takes the place of the node.
    """
    return plain_onnx(file_from_bytes(content, name))


def file_from_bytes(content: bytes, name: str) -> onnx.ModelProto:
    """Parse the ONNX file of the model `name` as it is stored, or raise an ExportError."""
    try:
        return onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ExportError(f"the file of '{name}' is not an ONNX file, or is damaged: {error}. Export it again") from error
