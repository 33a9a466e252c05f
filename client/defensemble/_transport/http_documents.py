"""The JSON documents of the KServe protocol, and of Triton's extensions of it, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .._exceptions import ServerFailedError
from .base import ModelMetadata, ModelState, ModelStatistics, ServerMetadata, TensorMetadata
from .error_mapping import protocol_errors, service_error

_COMPUTING = ("compute_input", "compute_infer", "compute_output")


def parse_json(content: bytes, context: str) -> Any:
    """Return the content as JSON.

    Args:
        content: The response.
        context: The failed call, for the message of an error.

    Raises:
        ServerFailedError: It is not JSON.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise service_error(ServerFailedError, context, f"the response is not JSON: {content[:200]!r}") from error


def parse_json_object(content: bytes, context: str) -> dict[str, Any]:
    """Return the content as a JSON object; see `parse_json`."""
    document = parse_json(content, context)
    if not isinstance(document, dict):
        raise service_error(ServerFailedError, context, f"the response is not a JSON object: {content[:200]!r}")
    return document


def parse_model_metadata(content: bytes, context: str) -> ModelMetadata:
    """Return the metadata of a model; see `parse_json`."""
    document = parse_json_object(content, context)
    with protocol_errors(context):
        inputs, outputs = (tuple(map(parse_tensor, document.get(key) or [])) for key in ("inputs", "outputs"))
        return ModelMetadata(check_string(document["name"]), check_string(document.get("platform") or ""), inputs, outputs)


def parse_server_metadata(content: bytes, context: str) -> ServerMetadata:
    """Return the name and version of a server; see `parse_json`."""
    document = parse_json_object(content, context)
    with protocol_errors(context):
        return ServerMetadata(check_string(document["name"]), check_string(document["version"]))


def parse_index(content: bytes, context: str) -> list[ModelState]:
    """Return the entries of a repository index; see `parse_json`."""
    document = parse_json(content, context)
    with protocol_errors(context):
        return [
            ModelState(
                check_string(entry["name"]),
                _parse_version(entry.get("version")),
                check_string(entry.get("state") or ""),
                check_string(entry.get("reason") or ""),
            )
            for entry in _check_list(document)
        ]


def parse_model_names(content: bytes, context: str) -> list[str]:
    """Return the names of a list of models, as KServe's own server sends it; see `parse_json`."""
    document = parse_json_object(content, context)
    with protocol_errors(context):
        return [check_string(name) for name in _check_list(document["models"])]


def parse_statistics(content: bytes, context: str) -> list[ModelStatistics]:
    """Return the statistics of models; see `parse_json`."""
    document = parse_json_object(content, context)
    with protocol_errors(context):
        return [_parse_model_statistics(entry) for entry in document["model_stats"]]


def _parse_model_statistics(entry: Mapping[str, Any]) -> ModelStatistics:
    durations = entry["inference_stats"]
    success, failure, queue = (durations[name] for name in ("success", "fail", "queue"))
    failures = _check_integer(failure["count"])
    return ModelStatistics(
        name=check_string(entry["name"]),
        version=_check_integer(entry["version"]),
        requests=_check_integer(success["count"]) + failures,
        executions=_check_integer(entry["execution_count"]),
        last_ms=_check_integer(entry["last_inference"]),
        failures=failures,
        images=_check_integer(entry["inference_count"]),
        success_ns=_check_integer(success["ns"]),
        queue_ns=_check_integer(queue["ns"]),
        compute_ns=sum(_check_integer(durations[name]["ns"]) for name in _COMPUTING if name in durations),
    )


def parse_tensor(document: Mapping[str, Any]) -> TensorMetadata:
    """Return a tensor's name, datatype and shape. The caller handles what JSON of another form raises."""
    shape = tuple(_check_integer(size) for size in _check_list(document["shape"]))
    return TensorMetadata(check_string(document["name"]), check_string(document["datatype"]), shape)


def check_string(value: object) -> str:
    """Return a string; raise a `TypeError` for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {value!r:.100}")
    return value


def check_size(value: object) -> int:
    """Return a number of bytes; raise a `TypeError` for anything else."""
    if not isinstance(value, int) or value < 0:
        raise TypeError(f"expected a number of bytes, got {value!r:.100}")
    return value


def _check_integer(value: object) -> int:
    # A number, or a string: the JSON form of protobuf's int64 and of Triton's versions.
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise TypeError(f"expected an integer, got {value!r:.100}")
    return int(value)


def _parse_version(value: object) -> int | None:
    if value is None or isinstance(value, str):  # other servers than Triton have none, or names such as "v0.1.0"
        return int(value) if value and value.isascii() and value.isdigit() else None
    return _check_integer(value)


def _check_list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {value!r:.100}")
    return value
