"""Inferences with wrong types, shapes and sizes. Each must be refused, over HTTP and over gRPC."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from benchmarks.common.servers import ENSEMBLE
from benchmarks.faulting.raw import http_request, infer_path, json_request, valid_document

Change = Callable[[dict[str, Any]], object]
_HUGE = 2**62
HUGE_BATCH = "a huge declared batch"
"""Core 2.51 keeps 32 bits of a declared batch: over gRPC, it answers for the images that were sent."""


def http_bad_tensors(images: NDArray[np.float32]) -> dict[str, bytes]:
    """Return HTTP requests by description. `images` are (1, C, H, W)."""
    shape = list(images.shape)
    values = images.ravel().tolist()
    changes: dict[str, Change] = {
        "type INT32 for FP32": lambda tensor: tensor.update(datatype="INT32", data=[0] * len(values)),
        "type FP64 for FP32": lambda tensor: tensor.update(datatype="FP64"),
        "type BYTES for FP32": lambda tensor: tensor.update(datatype="BYTES", data=["x"] * len(values)),
        "an unknown type": lambda tensor: tensor.update(datatype="FP99"),
        "no type": lambda tensor: tensor.pop("datatype"),
        "a number as the type": lambda tensor: tensor.update(datatype=32),
        "one pixel too many in the shape": lambda tensor: tensor.update(shape=[*shape[:3], shape[3] + 1]),
        "one pixel too few in the data": lambda tensor: tensor.update(data=values[1:]),
        "one pixel too many in the data": lambda tensor: tensor.update(data=[*values, 0.5]),
        "three dimensions": lambda tensor: tensor.update(shape=shape[1:]),
        "five dimensions": lambda tensor: tensor.update(shape=[1, *shape]),
        "a negative batch": lambda tensor: tensor.update(shape=[-1, *shape[1:]]),
        "a batch above the maximum": lambda tensor: tensor.update(shape=[1000, *shape[1:]], data=values * 1000),
        HUGE_BATCH: lambda tensor: tensor.update(shape=[_HUGE, *shape[1:]]),
        "a declared size that overflows 64 bits": lambda tensor: tensor.update(shape=[2**32, 2**32, 2**32, 2**32]),
        "a declared size that overflows to the right one": lambda tensor: tensor.update(shape=[2**62 + 1, *shape[1:3], 4 * shape[3]]),
        "a size above 64 bits": lambda tensor: tensor.update(shape=[2**70, *shape[1:]]),
        "10,000 dimensions": lambda tensor: tensor.update(shape=[1] * 10_000),
        "no dimensions": lambda tensor: tensor.update(shape=[]),
        "a text as the shape": lambda tensor: tensor.update(shape="all"),
        "fractions in the shape": lambda tensor: tensor.update(shape=[1.5, *shape[1:]]),
        "texts as the data": lambda tensor: tensor.update(data=["a"] * len(values)),
        "no data": lambda tensor: tensor.pop("data"),
        "an unknown input": lambda tensor: tensor.update(name="pictures"),
        "no name": lambda tensor: tensor.pop("name"),
        "a negative binary size": lambda tensor: (tensor.pop("data"), tensor.update(parameters={"binary_data_size": -4})),
        "a huge binary size": lambda tensor: (tensor.pop("data"), tensor.update(parameters={"binary_data_size": _HUGE})),
    }
    requests = {name: json_request(ENSEMBLE, _changed(images, change)) for name, change in changes.items()}
    tensor = {"name": "images", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": images.nbytes}}
    binary = {"inputs": [tensor], "outputs": [{"name": "probabilities"}]}
    content = images.tobytes()
    valid = valid_document(images)
    return requests | {
        "fewer bytes than declared": json_request(ENSEMBLE, binary, content[:-4]),
        "more bytes than declared": json_request(ENSEMBLE, binary, content + bytes(4)),
        "a JSON length above that of the body": json_request(
            ENSEMBLE, binary, content, {"Inference-Header-Content-Length": str(2 * images.nbytes + 10_000)}
        ),
        "a negative JSON length": json_request(ENSEMBLE, binary, content, {"Inference-Header-Content-Length": "-1"}),
        "a text as the JSON length": json_request(ENSEMBLE, binary, content, {"Inference-Header-Content-Length": "all"}),
        "no inputs": json_request(ENSEMBLE, {**valid, "inputs": []}),
        "the same input twice": json_request(ENSEMBLE, {**valid, "inputs": valid["inputs"] * 2}),
        "an input too many": json_request(ENSEMBLE, {**valid, "inputs": [*valid["inputs"], {**valid["inputs"][0], "name": "more"}]}),
        "an unknown output": json_request(ENSEMBLE, {**valid, "outputs": [{"name": "labels"}]}),
        "a list as the document": http_request(infer_path(ENSEMBLE), b"[]"),
        "no document": http_request(infer_path(ENSEMBLE), b""),
        "a negative version": json_request(f"{ENSEMBLE}/versions/-1", valid),
        "a text as the version": json_request(f"{ENSEMBLE}/versions/all", valid),
        "a version above 64 bits": json_request(f"{ENSEMBLE}/versions/{2**70}", valid),
    }


def grpc_bad_tensors(images: NDArray[np.float32]) -> dict[str, service_pb2.ModelInferRequest]:
    """Return gRPC requests by description. `images` are (1, C, H, W)."""
    shape, content = list(images.shape), images.tobytes()
    return {
        "type INT32 for FP32": _message([shape], [content], datatype="INT32"),
        "type FP64 for FP32": _message([shape], [content * 2], datatype="FP64"),
        "type BYTES for FP32": _message([shape], [content], datatype="BYTES"),
        "an unknown type": _message([shape], [content], datatype="FP99"),
        "no type": _message([shape], [content], datatype=""),
        "one pixel too many in the shape": _message([[*shape[:3], shape[3] + 1]], [content]),
        "fewer bytes than declared": _message([shape], [content[:-4]]),
        "more bytes than declared": _message([shape], [content + bytes(4)]),
        "half a pixel": _message([shape], [content[:-2]]),
        "three dimensions": _message([shape[1:]], [content]),
        "a negative batch": _message([[-1, *shape[1:]]], [content]),
        "a batch above the maximum": _message([[1000, *shape[1:]]], [content * 1000]),
        HUGE_BATCH: _message([[_HUGE, *shape[1:]]], [content]),
        "a declared size that overflows 64 bits": _message([[2**32, 2**32, 2**32, 2**32]], [content]),
        "a declared size that overflows to the right one": _message([[2**62 + 1, *shape[1:3], 4 * shape[3]]], [content]),
        "10,000 dimensions": _message([[1] * 10_000], [content]),
        "no dimensions": _message([[]], [content]),
        "no tensors": _message([], []),
        "a declared tensor without bytes": _message([shape], []),
        "bytes without a declared tensor": _message([], [content]),
        "the same input twice": _message([shape, shape], [content, content]),
        "an unknown input": _message([shape], [content], name="pictures"),
        "an empty name": _message([shape], [content], name=""),
        "an unknown output": _message([shape], [content], output="labels"),
        "a negative version": _message([shape], [content], version="-1"),
        "a text as the version": _message([shape], [content], version="all"),
    }


def _changed(images: NDArray[np.float32], change: Change) -> dict[str, Any]:
    document = copy.deepcopy(valid_document(images))
    change(document["inputs"][0])
    return document


def _message(
    shapes: list[list[int]],
    contents: list[bytes],
    *,
    datatype: str = "FP32",
    name: str = "images",
    output: str = "probabilities",
    version: str = "",
) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=ENSEMBLE, model_version=version, raw_input_contents=contents)
    for shape in shapes:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.outputs.add(name=output)
    return request
