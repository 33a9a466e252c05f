"""Whether the surrogates of a transfer attack are members of the target: an attack on a member is not a black-box attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .outcome import Check, Status
from .targets import Target

if TYPE_CHECKING:
    from defensemble_training import SurrogateRecord

_NAME = "surrogates are not members"
_SAME, _SIMILAR = 1e-4, 0.05
"""Largest difference of probabilities on the images of which a surrogate is least certain. Float32 graphs of one network differ by less
than 1e-5, its float16 graph by about 1e-3, two networks by tenths."""

_ENOUGH = 8  # images, on which two networks do not respond alike by chance


def independence_check(surrogates: Sequence[SurrogateRecord], target: Target, identity: Mapping[str, Any]) -> Check:
    """Compare surrogates with the members of a target: digests of masks, and responses to the images on which networks differ most.

    The digest of a served graph is not that of its checkpoint, and standard networks have no masks. So each member's probabilities are
    compared with those of each surrogate for clean images of which the surrogate is least certain.

    Args:
        surrogates: The surrogates.
        target: The target, which is asked.
        identity: What identifies it.

    Returns:
        FAIL if a surrogate has the masks or the responses of a member, WARN if it is similar or cannot be compared.
    """
    masks = _mask_digests(target.name, identity)
    smallest, problems = np.inf, []
    for surrogate in surrogates:
        for member, digests in masks.items():
            if surrogate.mask_digest in digests:
                problems.append(("FAIL", f"surrogate {surrogate.name} has the masks of {member}"))
        responses = target.member_probabilities(surrogate.images)
        for member, probabilities in responses.items():
            difference = float(np.abs(probabilities - surrogate.probabilities).max())
            smallest = min(smallest, difference)
            is_alike = bool((probabilities.argmax(axis=1) == surrogate.probabilities.argmax(axis=1)).all())
            if is_alike and difference <= _SAME:
                problems.append(("FAIL", f"surrogate {surrogate.name} is {member}: their probabilities differ by at most {difference:.1g}"))
            elif is_alike and difference <= _SIMILAR and len(surrogate.images) >= _ENOUGH:
                text = f"surrogate {surrogate.name} responds like {member} (probabilities within {difference:.1g})"
                problems.append(("WARN", f"{text}: is it the same network in another precision?"))
    if problems:
        status: Status = "FAIL" if any(kind == "FAIL" for kind, _ in problems) else "WARN"
        texts = "; ".join(dict.fromkeys(text for kind, text in problems if kind == status))
        fix = ". Use surrogates that are no members, of other seeds: with a member, the attack is white box" if status == "FAIL" else ""
        return Check(_NAME, status, f"{target.name}: {texts}{fix}")
    if not np.isfinite(smallest):
        return Check(_NAME, "WARN", f"{target.name}: it returns no probabilities to compare with those of the surrogates")
    return Check(
        _NAME, "PASS", f"{target.name}: probabilities of surrogates and members differ by at least {smallest:.2g}, and so do masks"
    )


def _mask_digests(name: str, identity: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the digests of the masks of all versions, by the name of the model."""
    models = {name: identity, **identity.get("members", {})}
    return {model: {value for key, value in values.items() if key.startswith("mask_digest.")} for model, values in models.items()}
