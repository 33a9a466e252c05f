"""The digest of a profile, in its own parameters: it shows whether somebody has edited what was written."""

from __future__ import annotations

import hashlib
import re

from .pbtxt import pbtxt_from_config, schema

DIGEST_PARAMETER = "profile.sha256"
# What an export adds to every configuration with each version: no edit by hand.
_OF_A_VERSION = re.compile(r".+\.[0-9]+")


def write_digest(config: schema.ModelConfig) -> None:
    """Write the digest of a profile's configuration into it."""
    config.parameters[DIGEST_PARAMETER].string_value = _digest(config)


def matches_digest(config: schema.ModelConfig) -> bool:
    """Return whether a configuration has the digest that it states; one without a digest has not."""
    return DIGEST_PARAMETER in config.parameters and config.parameters[DIGEST_PARAMETER].string_value == _digest(config)


def update_digest(before: schema.ModelConfig, after: schema.ModelConfig) -> None:
    """Write the digest of `after`, which an export has made of `before`, where `before` matched its own."""
    if matches_digest(before):
        write_digest(after)


def _digest(config: schema.ModelConfig) -> str:
    stripped = schema.ModelConfig()
    stripped.CopyFrom(config)
    for key in [key for key in stripped.parameters if key == DIGEST_PARAMETER or _OF_A_VERSION.fullmatch(key)]:
        del stripped.parameters[key]
    return hashlib.sha256(pbtxt_from_config(stripped)).hexdigest()
