"""The bodies of inference over HTTP: tensors as bytes (the binary extension of the KServe v2 protocol) or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from .._exceptions import InputError, ServerFailedError
from .base import Inputs, OutputRequest, Outputs
from .error_mapping import protocol_errors, service_error
from .http_documents import check_size, check_string, parse_json_object, parse_tensor
from .http_parser import HttpResponse
from .tensor_codec import array_from_json, array_from_wire

_LENGTH_HEADER = "Inference-Header-Content-Length"
_LENGTH_HEADER_KEY = _LENGTH_HEADER.lower().encode()
_MAX_CACHED_BYTES = 1 << 13  # a head may hold outputs as JSON, which must not stay in memory


def binary_request(inputs: Inputs, outputs: Sequence[OutputRequest], request_id: str) -> tuple[str, list[bytes | memoryview]]:
    """Return the header lines and the parts of the body of a request with its tensors as bytes.

    Args:
        inputs: The inputs by name.
        outputs: The outputs to request.
        request_id: The request's id; empty for none.
    """
    head = _encode_head(tuple((name, array.shape) for name, array in inputs.items()), tuple(outputs))
    if request_id:  # not in the cached part, of which each id would be another
        head = _id_prefix(request_id) + head[1:]
    contents = [np.ascontiguousarray(array).data.cast("B") for array in inputs.values()]
    return f"Content-Type: application/octet-stream\r\n{_LENGTH_HEADER}: {len(head)}\r\n", [head, *contents]


def json_request(inputs: Inputs, outputs: Sequence[OutputRequest], request_id: str) -> tuple[str, list[bytes | memoryview]]:
    """Return the header lines and the body of a request that is JSON; see `binary_request`.

    Raises:
        InputError: An input has a value that JSON cannot express.
    """
    if not fits_json(inputs):
        raise InputError("an input has values that are not finite; this server reads JSON only, which cannot express them")
    tensors = [{"name": name, "shape": array.shape, "datatype": "FP32", "data": np.ravel(array).tolist()} for name, array in inputs.items()]
    requested = [
        {"name": output.name, **({"parameters": {"classification": output.class_count}} if output.class_count else {})}
        for output in outputs
    ]
    document = {**({"id": request_id} if request_id else {}), "inputs": tensors, **({"outputs": requested} if requested else {})}
    return "Content-Type: application/json\r\n", [msgspec.json.encode(document)]


def fits_json(inputs: Inputs) -> bool:
    """Return whether all values are finite, as those of JSON are."""
    return all(bool(np.isfinite(array).all()) for array in inputs.values())


def outputs_from_response(response: HttpResponse, requested: Sequence[OutputRequest], request_id: str, context: str) -> Outputs:
    """Return the outputs of a response, whose tensors may be bytes or JSON, whatever the request asked for.

    Args:
        response: The response.
        requested: The requested outputs.
        request_id: The request's id.
        context: The failed call, for the message of an error.

    Raises:
        ServerFailedError: The response does not follow the protocol, or lacks a requested output.
    """
    length = response.headers.get(_LENGTH_HEADER_KEY)
    if length is None:
        position = len(response.body)
        model_version, tensors = _parse_head(bytes(response.body), context)
    else:
        if not length.isdigit() or len(length) > 18:
            raise service_error(ServerFailedError, context, f"the response has the invalid {_LENGTH_HEADER} {length[:40]!r}")
        position = int(length)
        head = bytes(response.body[:position])
        if request_id and head.startswith(prefix := _id_prefix(request_id)):
            head = b"{" + head[len(prefix) :]  # the rest is mostly the same in the responses of a model, and cached
        parse = _parse_head_once if len(head) <= _MAX_CACHED_BYTES else _parse_head
        model_version, tensors = parse(head, context)
    values = Outputs({}, model_version)
    for name, datatype, shape, size, data in tensors:
        if size is None:
            values[name] = array_from_json(datatype, shape, data, context)
        else:
            values[name] = array_from_wire(datatype, shape, response.body[position : position + size], context)
            position += size
    if position != len(response.body):
        reason = f"the response has {len(response.body)} bytes, but its outputs end after {position}"
        raise service_error(ServerFailedError, context, reason)
    for output in requested:
        if output.name not in values:
            raise service_error(ServerFailedError, context, f"the response lacks the output {output.name!r}; it has {sorted(values)}")
    return values


def _id_prefix(request_id: str) -> bytes:
    return b'{"id":' + json.dumps(request_id).encode() + b","


# The JSON part is the same in most requests and responses of a model. Caching it saves 25 us of a call of 460: encoding and decoding are
# slow right after a call, when the code of json is not in the processor's caches.
@lru_cache(maxsize=256)
def _encode_head(inputs: tuple[tuple[str, tuple[int, ...]], ...], outputs: tuple[OutputRequest, ...]) -> bytes:
    tensors = [
        {"name": name, "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": 4 * math.prod(shape)}}
        for name, shape in inputs
    ]
    requested = []
    for output in outputs:
        classes = {"classification": output.class_count} if output.class_count else {}
        requested.append({"name": output.name, "parameters": {"binary_data": True, **classes}})
    return json.dumps({"inputs": tensors, "outputs": requested}).encode()


_Tensor = tuple[str, str, tuple[int, ...], "int | None", Any]  # name, datatype, shape, size in bytes, and the data where it is JSON


def _parse_head(head: bytes, context: str) -> tuple[str, tuple[_Tensor, ...]]:
    """Return the model's version, and the outputs in the order of their data."""
    document = parse_json_object(head, context)
    with protocol_errors(context):
        return check_string(document.get("model_version") or ""), tuple(_parse_output(output) for output in document["outputs"])


_parse_head_once = lru_cache(maxsize=256)(_parse_head)


def _parse_output(output: Mapping[str, Any]) -> _Tensor:
    tensor = parse_tensor(output)
    if output.get("data") is not None:
        return tensor.name, tensor.datatype, tensor.shape, None, output["data"]
    return tensor.name, tensor.datatype, tensor.shape, check_size(output["parameters"]["binary_data_size"]), None
