"""Whether a server has loaded what is on disk: its configuration of a model, compared with the file."""

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

# What no server fills in where a file leaves it out, seen of 2.51: it has it from another file. It does fill in `instance_group`,
# `optimization`, `version_policy` and the batcher's `preferred_batch_size`.
_NEVER_FILLED_IN = {
    *("parameters", "model_warmup", "response_cache", "sequence_batching"),
    *("max_queue_delay_microseconds", "preserve_ordering", "default_queue_policy", "priority_levels", "priority_queue_policy"),
}


def config_from_server(told: Mapping[str, Any]) -> schema.ModelConfig:
    """A configuration as a server tells it, in JSON.

    Raises:
        ConfigError: it is none.
    """
    try:
        return ParseDict(dict(told), schema.ModelConfig(), ignore_unknown_fields=True)
    except (ParseError, RecursionError) as error:
        raise ConfigError(f"the server's configuration of {told.get('name', 'a model')!r} cannot be read: {error}") from error


def is_served_as_on_disk(files: RepositoryView, model: str, told: Mapping[str, Any], *, version: int | None = None) -> bool:
    """Whether a server's configuration of ``model`` is that of its ``config.pbtxt``, or of one of its profiles.

    A server fills in what a file leaves out: what the file says has to be in it, and more may be. Model files are compared by the digests
    that configurations carry. With a ``version``, the parameters of other versions do not count: there may be a new one.

    Raises:
        ConfigError: the file, or the server's configuration, cannot be read.
        OSError: likewise.
    """
    served = _of_version(config_from_server(told), version)
    folder = files.repository / model
    profiles = sorted((folder / PROFILES_FOLDER).glob("*.pbtxt")) if (folder / PROFILES_FOLDER).is_dir() else []
    for path in (folder / CONFIG_FILE, *profiles):
        content = files.content(path.relative_to(files.repository).as_posix())
        if content is not None:
            said = config_from_pbtxt(content.decode(errors="replace"), str(path))
            if is_subset(_of_version(said, version), served):
                return True
    return False


def _of_version(config: schema.ModelConfig, version: int | None) -> schema.ModelConfig:
    """A configuration without the parameters of other versions."""
    if version is None:
        return config
    kept = schema.ModelConfig()
    kept.CopyFrom(config)
    for key in [key for key in kept.parameters if re.fullmatch(r".+\.[0-9]+", key) and not key.endswith(f".{version}")]:
        del kept.parameters[key]
    return kept


def is_subset(said: Message, served: Message) -> bool:
    """Whether ``served`` says all that ``said`` does, and no more than a server fills in."""
    told = {field.name for field, _ in said.ListFields()}
    if any(field.name in _NEVER_FILLED_IN - told for field, _ in served.ListFields()):
        return False
    for field, value in said.ListFields():
        other = getattr(served, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if set(value) != set(other) or not all(_same(value[key], other[key]) for key in value):
                return False
        elif isinstance(value, Message):
            if not served.HasField(field.name) or not is_subset(value, other):
                return False
        elif hasattr(value, "__len__") and not isinstance(value, (str, bytes)):
            if len(value) != len(other) or not all(_same(one, another) for one, another in zip(value, other, strict=True)):
                return False
        elif field.name != "name" and value != other:
            return False
    return True


def _same(one: object, another: object) -> bool:
    return is_subset(one, another) if isinstance(one, Message) and isinstance(another, Message) else one == another
