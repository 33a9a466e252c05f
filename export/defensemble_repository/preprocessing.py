"""The parameter `preprocessing` of a configuration: the rule by which images are resized for the network.

`defensemble_images.Preprocessing.to_json` returns its value. This module only compares values. Without the parameter, the rule is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import ConfigError, EnsembleError
from .pbtxt import schema
from .records import parse_json, record_from_values

PREPROCESSING = "preprocessing"
_FIX = (
    "Remove one of them, or put it into another ensemble. If a rule is wrong, correct the parameter in that config.pbtxt, or import the "
    "ONNX file again with another --name and --resize."
)


def common_preprocessing(parameters: Mapping[str, str | None], fix: str = _FIX) -> str | None:
    """Return the parameter `preprocessing` that several models share, or None if no model has it.

    Args:
        parameters: The parameter of each model, by name. None, if it is absent, agrees with any rule.
        fix: The advice at the end of the error message.

    Raises:
        ConfigError: A parameter is not a JSON object.
        EnsembleError: Two models have different rules.
    """
    known = {name: text for name, text in parameters.items() if text is not None}
    rules = {name: parse_preprocessing(name, text) for name, text in known.items()}
    first = next(iter(known), None)
    if first is None:
        return None
    other = next((name for name, rule in rules.items() if rule != rules[first]), None)
    if other is not None:
        raise EnsembleError(
            f"'{first}' and '{other}' have different `{PREPROCESSING}` parameters, so they resize images differently: "
            f"{known[first][:200]} and {known[other][:200]}. {fix}"
        )
    return known[first]


def parse_preprocessing(name: str, text: str) -> dict[str, Any]:
    """Parse the parameter `preprocessing` of a model.

    Args:
        name: The name of the model, for the error message.
        text: The value of the parameter.

    Raises:
        ConfigError: The value is not a JSON object.
    """
    try:
        return record_from_values(parse_json(text), dict[str, Any])
    except ValueError as error:
        raise ConfigError(
            f"parameter `{PREPROCESSING}` of '{name}' is {text[:80]!r}; expected a JSON object such as "
            '{"version": 1, "resize": "crop", "filter": "bicubic"}. Correct or remove it.'
        ) from error


def set_preprocessing(config: schema.ModelConfig, text: str | None) -> None:
    """Set the parameter `preprocessing` of a configuration, or remove it if `text` is None."""
    if text is not None:
        config.parameters[PREPROCESSING].string_value = text
    elif PREPROCESSING in config.parameters:
        del config.parameters[PREPROCESSING]
