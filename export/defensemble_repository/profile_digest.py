"""The stamp of a profile: a digest in its parameters of what was written, by which an edit by hand is known from our own."""

from __future__ import annotations

import hashlib
import re

from .pbtxt import pbtxt_from_config, schema

DIGEST_PARAMETER = "profile.sha256"
# What an export adds to every configuration with each version: no edit by hand.
_OF_A_VERSION = re.compile(r".+\.[0-9]+")


def stamp(config: schema.ModelConfig) -> None:
    """Write into a profile's configuration what it is now."""
    config.parameters[DIGEST_PARAMETER].string_value = _digest(config)


def has_stamp(config: schema.ModelConfig) -> bool:
    """Whether a configuration is what its stamp says; one without a stamp is not."""
    return DIGEST_PARAMETER in config.parameters and config.parameters[DIGEST_PARAMETER].string_value == _digest(config)


def keep_stamp(before: schema.ModelConfig, after: schema.ModelConfig) -> None:
    """Stamp ``after``, which an export has made of ``before``, anew, where ``before`` was as its stamp said."""
    if has_stamp(before):
        stamp(after)


def _digest(config: schema.ModelConfig) -> str:
    stripped = schema.ModelConfig()
    stripped.CopyFrom(config)
    for key in [key for key in stripped.parameters if key == DIGEST_PARAMETER or _OF_A_VERSION.fullmatch(key)]:
        del stripped.parameters[key]
    return hashlib.sha256(pbtxt_from_config(stripped)).hexdigest()
