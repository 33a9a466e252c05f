"""The digest of a serving profile, stored in its own parameters, which shows whether a user edited the file."""

from __future__ import annotations

import hashlib
import re

from .pbtxt import pbtxt_from_config, schema

DIGEST_PARAMETER = "profile.sha256"
# Parameters that an export adds for each version. They are not a user's edit.
_VERSION_PARAMETER = re.compile(r".+\.[0-9]+")


def write_digest(config: schema.ModelConfig) -> None:
    """Set the digest parameter of a profile."""
    config.parameters[DIGEST_PARAMETER].string_value = _digest(config)


def matches_digest(config: schema.ModelConfig) -> bool:
    """Return whether the digest parameter of a profile matches its content. Without the parameter, it does not."""
    return DIGEST_PARAMETER in config.parameters and config.parameters[DIGEST_PARAMETER].string_value == _digest(config)


def update_digest(before: schema.ModelConfig, after: schema.ModelConfig) -> None:
    """Set the digest parameter of a profile that an export has changed, if the profile matched its digest before.

    Args:
        before: The configuration before the change.
        after: The configuration after it, which is updated.
    """
    if matches_digest(before):
        write_digest(after)


def _digest(config: schema.ModelConfig) -> str:
    stripped = schema.ModelConfig()
    stripped.CopyFrom(config)
    for key in [key for key in stripped.parameters if key == DIGEST_PARAMETER or _VERSION_PARAMETER.fullmatch(key)]:
        del stripped.parameters[key]
    return hashlib.sha256(pbtxt_from_config(stripped)).hexdigest()
