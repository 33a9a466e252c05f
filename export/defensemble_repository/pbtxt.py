"""Triton's protobuf schema of model configurations, and `config.pbtxt` read and written through it."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf import text_format

from .errors import ConfigError
from .filesystem.regular_files import read_text
from .texts import shortened

if TYPE_CHECKING:
    from types import ModuleType

    from tritonclient.grpc import model_config_pb2 as schema

# A reason quotes the line, which in a file with the line ends of another system is the whole file.
MAX_REASON_LENGTH = 400
_STRING_OR_COMMENT = re.compile(r"""\#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""")
# All but the spaces of C and printable ASCII, and a number as Python writes one, such as 1_000.
_NOT_PLAIN = re.compile(r"[^\t\n\v\f\r -~]|(?<!\w)[0-9][\w.]*_")

__all__ = ["MAX_REASON_LENGTH", "config_from_file", "config_from_pbtxt", "pbtxt_from_config", "schema"]


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
        reason = shortened(str(error).rstrip("."), MAX_REASON_LENGTH)
        raise ConfigError(f"{where}: not a valid model configuration: {reason}. Mend the file, or export the model again.") from error


def _check_characters(text: str) -> None:
    """Refuse, with line and column, what Triton's parser does not read: Unicode spaces and digits, `_` in a number, zero bytes."""
    place = text.find("\0")
    if place < 0:
        # Of the same length, so that places stay what they are.
        ascii_only = _STRING_OR_COMMENT.sub(lambda match: " " * len(match.group()), text)
        found = _NOT_PLAIN.search(ascii_only)
        if found is None:
            return
        place = found.start()
    character = text[place]
    if text.count("\0") * 3 > len(text):
        problem = "it is UTF-16, expected UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`"
    elif character == "\ufeff":
        problem = "a byte order mark (U+FEFF): remove it, at the beginning with `sed -i '1s/^\\xEF\\xBB\\xBF//' FILE`"
    elif character == "\ufffd":
        problem = "bytes that are not UTF-8: save it as UTF-8"
    elif character.isascii() and character.isdigit():
        problem = "a number with '_', which Triton does not read: remove the '_'"
    else:
        name = unicodedata.name(character, "a control character")
        problem = f"the character U+{ord(character):04X} ({name}), which Triton does not read: remove it"
    line = text.count("\n", 0, place)
    raise text_format.ParseError(problem, line + 1, place - text.rfind("\n", 0, place))


@functools.lru_cache(maxsize=2048)
def _parsed(text: str) -> bytes:
    # Serialised, so that nobody changes what is kept. An edit reads every configuration several times: a parse takes 0.2 to 0.7 ms, this
    # 0.002, which made the processor time of an edit in a repository with 50 edits behind it 45 ms, not 177.
    _check_characters(text)
    parsed: bytes = text_format.Parse(text, schema.ModelConfig()).SerializeToString()
    return parsed
