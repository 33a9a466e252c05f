"""How images are brought to the size of a network, as the parameter `preprocessing` of its configuration states it.

The parameter is what `defensemble_images.Preprocessing.to_json` returns. Here it is only compared. Where it is absent, the rule is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import ConfigError, EnsembleError
from .pbtxt import schema
from .records import parse_json, record_from_values

PREPROCESSING = "preprocessing"
_FIX = (
    "leave one of them out, or give it an ensemble of its own; if a rule is wrong, correct the parameter in that config.pbtxt, or export "
    "the ONNX file under another name with another --resize"
)


def common_preprocessing(stated: Mapping[str, str | None], fix: str = _FIX) -> str | None:
    """Return the parameter `preprocessing` that several models have in common, None where none has it.

    ``stated`` maps each model to its parameter, None where it is absent, which agrees with any; ``fix`` is how to fix a disagreement.

    Raises:
        ConfigError: a parameter is not a JSON object.
        EnsembleError: two models state different rules.
    """
    known = {name: text for name, text in stated.items() if text is not None}
    rules = {name: parse_preprocessing(name, text) for name, text in known.items()}
    first = next(iter(known), None)
    if first is None:
        return None
    other = next((name for name, rule in rules.items() if rule != rules[first]), None)
    if other is not None:
        raise EnsembleError(
            f"'{first}' and '{other}' differ in `{PREPROCESSING}`, how images of another size are resized: {known[first][:200]} and "
            f"{known[other][:200]}: {fix}"
        )
    return known[first]


def parse_preprocessing(name: str, text: str) -> dict[str, Any]:
    """Read the parameter `preprocessing` of the model `name`; ConfigError where it is not a JSON object."""
    try:
        return record_from_values(parse_json(text), dict[str, Any])
    except ValueError as error:
        raise ConfigError(
            f"the parameter `{PREPROCESSING}` of '{name}' is {text[:80]!r}, expected a JSON object such as "
            '{"version": 1, "resize": "crop", "filter": "bicubic"}: correct it, or remove it'
        ) from error


def set_preprocessing(config: schema.ModelConfig, text: str | None) -> None:
    """Write the parameter `preprocessing` into a configuration, or remove it (None)."""
    if text is not None:
        config.parameters[PREPROCESSING].string_value = text
    elif PREPROCESSING in config.parameters:
        del config.parameters[PREPROCESSING]
