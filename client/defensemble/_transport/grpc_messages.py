"""Tensors in gRPC messages: as bytes or, as other servers than Triton may require and return them, in typed fields."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from .._exceptions import ServerFailedError
from .base import Inputs, OutputRequest
from .error_mapping import protocol_errors, service_error
from .tensor_codec import array_from_wire

# Field and numpy's type, by datatype. FP16 has no field.
_FIELDS = {
    "BOOL": ("bool_contents", "?"),
    "UINT8": ("uint_contents", "<u1"),
    "UINT16": ("uint_contents", "<u2"),
    "UINT32": ("uint_contents", "<u4"),
    "UINT64": ("uint64_contents", "<u8"),
    "INT8": ("int_contents", "<i1"),
    "INT16": ("int_contents", "<i2"),
    "INT32": ("int_contents", "<i4"),
    "INT64": ("int64_contents", "<i8"),
    "FP32": ("fp32_contents", "<f4"),
    "FP64": ("fp64_contents", "<f8"),
}


def infer_request(model: str, version: str, inputs: Inputs, outputs: Sequence[OutputRequest], request_id: str, *, is_raw: bool) -> Any:
    """Return the message of an inference.

    Args:
        model: Name of the model.
        version: Its version; empty for the server's choice.
        inputs: The inputs by name.
        outputs: The outputs to request.
        request_id: The request's id; empty for none.
        is_raw: Whether the inputs are sent as bytes; otherwise in typed fields.
    """
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, array in inputs.items():
        tensor = request.inputs.add(name=name, datatype="FP32", shape=array.shape)
        if is_raw:
            request.raw_input_contents.append(array.tobytes())
        else:
            tensor.contents.fp32_contents.extend(array.ravel().tolist())
    for output in outputs:
        requested = request.outputs.add(name=output.name)
        if output.class_count:
            requested.parameters["classification"].int64_param = output.class_count
    return request


def arrays_from_response(response: Any, context: str) -> dict[str, NDArray[Any]]:
    """Return the outputs of a response by name.

    Args:
        response: The message.
        context: The failed call, for the message of an error.

    Raises:
        ServerFailedError: The response does not follow the protocol.
    """
    contents = response.raw_output_contents
    if not contents:
        with protocol_errors(context):
            contents = [_wire_from_fields(output.datatype, output.contents) for output in response.outputs]
    if len(contents) != len(response.outputs):
        raise service_error(ServerFailedError, context, f"the response has {len(response.outputs)} outputs, but data for {len(contents)}")
    return {
        output.name: array_from_wire(output.datatype, tuple(output.shape), content, context)
        for output, content in zip(response.outputs, contents, strict=True)
    }


def _wire_from_fields(datatype: str, contents: Any) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(item)) + item for item in contents.bytes_contents)
    if datatype not in _FIELDS:
        return b""  # which fits no shape but an empty one
    field, code = _FIELDS[datatype]
    return np.array(getattr(contents, field), code).tobytes()
