"""An ensemble: its members, their weights and the kind of average."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import EnsembleError
from .names import RESERVED_PREFIXES, check_name

AVERAGES = ("probabilities", "logits")
# The form of averaging that is written, with one model, and the older form, with one model for the probabilities and one for the rest.
FORM, TWO_MODEL_FORM = 2, 1
# A normalised weight below this has no effect in float32.
_MIN_WEIGHT = 1e-7
# Tested with 60 members: an edit took 0.65 s.
_MAX_MEMBERS = 256


@dataclass(frozen=True)
class Member:
    """A member of an ensemble: version `version` of `model`, with a finite `weight` above 0.

    Raises:
        EnsembleError: The name, the version or the weight is not allowed.

    Example:
        >>> Member("keep0.3", version=2, weight=0.5)
        Member(model='keep0.3', version=2, weight=0.5)
    """

    model: str
    version: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_name(self.model)
        if self.version < 1:
            raise EnsembleError(f"version of '{self.model}' is {self.version}; expected 1 or more")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise EnsembleError(
                f"weight of '{self.model}' must be finite and above 0, got {self.weight}. To exclude the model, remove it from the members."
            )


@dataclass(frozen=True)
class Ensemble:
    """An ensemble of 1 to 256 members, in step order, that averages `"probabilities"` (the default) or `"logits"`.

    Raises:
        EnsembleError: The name, the members, the weights or the average are not allowed.

    Example:
        >>> Ensemble("ensemble", (Member("a"), Member("b", weight=3.0))).weights
        (0.25, 0.75)
    """

    name: str
    members: tuple[Member, ...]
    average: str = "probabilities"

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.members:
            raise EnsembleError(f"ensemble '{self.name}' has no members; it needs at least one")
        if len(self.members) > _MAX_MEMBERS:
            raise EnsembleError(f"ensemble '{self.name}' has {len(self.members)} members; expected at most {_MAX_MEMBERS}")
        if self.average not in AVERAGES:
            raise EnsembleError(f"average is {self.average!r}; expected one of {', '.join(AVERAGES)}")
        versions = [(member.model, member.version) for member in self.members]
        repeated = sorted({f"{model}@{version}" for model, version in versions if versions.count((model, version)) > 1})
        if repeated:
            raise EnsembleError(f"ensemble '{self.name}' contains {', '.join(repeated)} twice. Give it a larger weight instead.")
        negligible = [member.model for member, weight in zip(self.members, self.weights, strict=True) if weight < _MIN_WEIGHT]
        if negligible:
            raise EnsembleError(
                f"the weight of {', '.join(negligible)} is less than {_MIN_WEIGHT:g} of the sum of weights, so it does not count. "
                "Remove the member or give it a larger weight."
            )
        if self.name in {member.model for member in self.members}:
            raise EnsembleError(f"ensemble '{self.name}' has a member of the same name. Rename one of them.")

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights, normalised so that they sum to 1."""
        return normalised_weights([member.weight for member in self.members])

    def extended(self, versions: Mapping[str, int], weights: Mapping[str, float], average: str | None = None) -> Ensemble:
        """Return an ensemble with other versions, additional members, other weights or another average.

        Args:
            versions: The new version of each model. A model that is not a member yet is appended, with weight 1.
            weights: The new weights, by model. Other members keep theirs.
            average: The new average, or None to keep it.

        Raises:
            EnsembleError: A weight is for a model that is not a member, or a model is a member with several versions.
        """
        names = [member.model for member in self.members]
        models = dict.fromkeys((*names, *versions))
        if unknown := sorted(set(weights) - set(models)):
            members = ", ".join(models)
            raise EnsembleError(
                f"cannot set the weight of {', '.join(unknown)}: not a member of '{self.name}', whose members are {members}"
            )
        ambiguous = sorted({name for name in (*versions, *weights) if names.count(name) > 1})
        if ambiguous:
            raise EnsembleError(
                f"ensemble '{self.name}' contains several versions of {', '.join(ambiguous)}, so the one to change is ambiguous. "
                "Remove the others from its config.pbtxt, or export under another name."
            )
        kept = [
            Member(member.model, versions.get(member.model, member.version), weights.get(member.model, member.weight))
            for member in self.members
        ]
        added = [Member(name, version, weights.get(name, 1.0)) for name, version in versions.items() if name not in names]
        return Ensemble(self.name, (*kept, *added), average or self.average)

    def digest(self, num_classes: int, max_batch_size: int, *, form: int = FORM) -> str:
        """Return a digest of the computation, in 16 hexadecimal digits. Equal computations have equal digests.

        Weights are normalised and rounded to float32, as in the graph: weights 1 and 1 give the same digest as 2 and 2.

        Args:
            num_classes: The number of classes.
            max_batch_size: The largest batch of the averaging model.
            form: `FORM` or `TWO_MODEL_FORM`. Different forms have different digests.
        """
        computed: dict[str, object] = {
            "average": self.average,
            "members": [
                [member.model, member.version, struct.pack("<f", share).hex()]
                for member, share in zip(self.members, self.weights, strict=True)
            ],
            "num_classes": num_classes,
            "max_batch_size": max_batch_size,
        }
        if form != TWO_MODEL_FORM:
            computed["form"] = form
        return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:16]


def normalised_weights(weights: Sequence[float]) -> tuple[float, ...]:
    """Scale weights above 0 so that they sum to 1."""
    largest = max(weights)  # The sum of the weights could overflow.
    shares = [weight / largest for weight in weights]
    total = math.fsum(shares)
    return tuple(share / total for share in shares)


def averaging_model_name(ensemble: Ensemble, num_classes: int, max_batch_size: int) -> str:
    """Return the name of the averaging model of an ensemble, which contains the digest of the computation."""
    return f"{RESERVED_PREFIXES[0]}{ensemble.digest(num_classes, max_batch_size)}"


def two_model_names(ensemble: Ensemble, num_classes: int, max_batch_size: int) -> list[str]:
    """Return the names of the two averaging models in the older form: for `probabilities`, and for the other outputs."""
    digest = ensemble.digest(num_classes, max_batch_size, form=TWO_MODEL_FORM)
    return [f"{prefix}{digest}" for prefix in RESERVED_PREFIXES]
