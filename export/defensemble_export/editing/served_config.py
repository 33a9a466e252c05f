"""Comparison of a model's configuration on a server with its file on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from defensemble_repository.errors import ConfigError
from defensemble_repository.names import CONFIG_FILE, PROFILES_FOLDER
from defensemble_repository.pbtxt import config_from_pbtxt, schema
from defensemble_repository.view import RepositoryView

# Fields that no server fills in if the file omits them, so they come from another file (observed with core 2.51). A server does fill in
# `instance_group`, `optimization`, `version_policy` and the batcher's `preferred_batch_size`.
_NEVER_FILLED_IN = {
    *("parameters", "model_warmup", "response_cache", "sequence_batching"),
    *("max_queue_delay_microseconds", "preserve_ordering", "default_queue_policy", "priority_levels", "priority_queue_policy"),
}


def config_from_server(loaded: Mapping[str, Any]) -> schema.ModelConfig:
    """Parse a configuration from a server's JSON.

    Raises:
        ConfigError: The JSON is not a configuration.
    """
    try:
        return ParseDict(dict(loaded), schema.ModelConfig(), ignore_unknown_fields=True)
    except (ParseError, RecursionError) as error:
        raise ConfigError(f"the server's configuration of {loaded.get('name', 'a model')!r} cannot be read: {error}") from error


def is_served_as_on_disk(files: RepositoryView, model: str, loaded: Mapping[str, Any], *, version: int | None = None) -> bool:
    """Return whether a server has loaded a model with its `config.pbtxt`, or with one of its profiles.

    A server fills in fields that a file omits, so only the fields of the file are compared. Model files are compared by the digests in the
    configurations.

    Args:
        files: The repository.
        model: The model.
        loaded: The server's configuration of the model, as JSON.
        version: Ignore the parameters of other versions, such as a new one; None compares all parameters.

    Raises:
        ConfigError: The file or the server's configuration cannot be parsed.
        OSError: A file cannot be read.
    """
    served = _of_version(config_from_server(loaded), version)
    folder = files.repository / model
    profiles = sorted((folder / PROFILES_FOLDER).glob("*.pbtxt")) if (folder / PROFILES_FOLDER).is_dir() else []
    for path in (folder / CONFIG_FILE, *profiles):
        content = files.content(path.relative_to(files.repository).as_posix())
        if content is not None:
            on_disk = config_from_pbtxt(content.decode(errors="replace"), str(path))
            if is_subset(_of_version(on_disk, version), served):
                return True
    return False


def _of_version(config: schema.ModelConfig, version: int | None) -> schema.ModelConfig:
    """Return a configuration without the parameters of other versions."""
    if version is None:
        return config
    kept = schema.ModelConfig()
    kept.CopyFrom(config)
    for key in [key for key in kept.parameters if re.fullmatch(r".+\.[0-9]+", key) and not key.endswith(f".{version}")]:
        del kept.parameters[key]
    return kept


def is_subset(on_disk: Message, served: Message) -> bool:
    """Return whether `served` has all fields of `on_disk` with the same values, and otherwise only fields that a server fills in.

    Args:
        on_disk: The configuration on disk, or a part of it.
        served: The same part of the configuration that the server has loaded.
    """
    names = {field.name for field, _ in on_disk.ListFields()}
    if any(field.name in _NEVER_FILLED_IN - names for field, _ in served.ListFields()):
        return False
    for field, value in on_disk.ListFields():
        other = getattr(served, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if set(value) != set(other) or not all(_same(value[key], other[key]) for key in value):
                return False
        elif isinstance(value, Message):
            if not served.HasField(field.name) or not is_subset(value, other):
                return False
        elif hasattr(value, "__len__") and not isinstance(value, (str, bytes)):
            if len(value) != len(other) or not all(map(_same, value, other)):
                return False
        elif field.name != "name" and value != other:
            return False
    return True


def _same(value: object, other: object) -> bool:
    return is_subset(value, other) if isinstance(value, Message) and isinstance(other, Message) else value == other
