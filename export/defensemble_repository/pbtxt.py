"""Triton's protobuf schema of model configurations, and `config.pbtxt` read and written through it."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf import text_format

from .errors import ConfigError
from .filesystem.regular_files import read_text

if TYPE_CHECKING:
    from types import ModuleType

    from tritonclient.grpc import model_config_pb2 as schema

__all__ = ["config_from_file", "config_from_pbtxt", "pbtxt_from_config", "schema"]


def _load_schema() -> ModuleType:
    """Import the generated module without its package, which imports gRPC: 0.5 s that only a gRPC caller needs."""
    name = "tritonclient.grpc.model_config_pb2"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'tritonclient'", name="tritonclient")
    file = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Under its own name, so that `tritonclient.grpc` finds this one when it is imported later: one set of message classes.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if not TYPE_CHECKING:
    schema = _load_schema()


def pbtxt_from_config(config: schema.ModelConfig) -> bytes:
    """Serialise a model configuration, and parse it back to be sure that it says the same.

    Raises:
        ConfigError: the text does not give the same configuration back.
    """
    text: str = text_format.MessageToString(config, as_utf8=True)
    if config_from_pbtxt(text, config.name) != config:
        raise ConfigError(f"the configuration of '{config.name}' is not read back as it was written")
    return text.encode()


def config_from_file(path: Path) -> schema.ModelConfig:
    """Parse a file that holds a model configuration.

    Raises:
        ConfigError: it is not a valid one.
        OSError: it is no regular file, or cannot be read.
    """
    return config_from_pbtxt(read_text(path), str(path))


def config_from_pbtxt(text: str, where: str) -> schema.ModelConfig:
    """Parse the text of a ``config.pbtxt``; ``where`` names it in errors.

    Raises:
        ConfigError: with line and column, where it is not a valid model configuration.
    """
    try:
        return schema.ModelConfig.FromString(_parsed(text))
    except (text_format.ParseError, ValueError) as error:  # ValueError: a number too large for its field, without its line
        raise ConfigError(
            f"{where}: not a valid model configuration: {str(error).rstrip('.')}. Mend the file, or export the model again."
        ) from error


@functools.lru_cache(maxsize=2048)
def _parsed(text: str) -> bytes:
    # Serialised, so that nobody changes what is kept. An edit reads every configuration several times: a parse takes 0.2 to 0.7 ms, this
    # 0.002, which made the processor time of an edit in a repository with 50 edits behind it 45 ms, not 177.
    parsed: bytes = text_format.Parse(text, schema.ModelConfig()).SerializeToString()
    return parsed
