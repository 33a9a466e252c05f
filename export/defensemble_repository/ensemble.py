"""What an ensemble is: which member votes with which weight, averaged how."""

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
# The form in which an ensemble is averaged, and the one before: one model gave the probabilities, another the rest.
FORM, TWO_MODEL_FORM = 2, 1
# A share below this is lost in float32.
_LEAST_WEIGHT = 1e-7
# Sixty were tried: an edit of theirs took 0.65 s.
_MOST_MEMBERS = 256


@dataclass(frozen=True)
class Member:
    """One member's vote: ``model`` at ``version`` with a positive finite ``weight``."""

    model: str
    version: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_name(self.model)
        if self.version < 1:
            raise EnsembleError(f"version of '{self.model}' must be 1 or more, got {self.version}")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise EnsembleError(
                f"weight of '{self.model}' must be finite and above 0, got {self.weight}; to stop a vote, leave the member out"
            )


@dataclass(frozen=True)
class Ensemble:
    """The votes of an ensemble, in step order, and what is averaged: ``"probabilities"`` (the default) or ``"logits"``."""

    name: str
    members: tuple[Member, ...]
    average: str = "probabilities"

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.members:
            raise EnsembleError(f"ensemble '{self.name}' has no members: it needs at least one")
        if len(self.members) > _MOST_MEMBERS:
            raise EnsembleError(f"ensemble '{self.name}' has {len(self.members)} members: at most {_MOST_MEMBERS} can vote")
        if self.average not in AVERAGES:
            raise EnsembleError(f"average must be one of {', '.join(AVERAGES)}, got {self.average!r}")
        votes = [(member.model, member.version) for member in self.members]
        twice = sorted({f"{model}@{version}" for model, version in votes if votes.count((model, version)) > 1})
        if twice:
            raise EnsembleError(f"ensemble '{self.name}' names {', '.join(twice)} twice: give it a larger weight instead")
        faint = [member.model for member, weight in zip(self.members, self.weights, strict=True) if weight < _LEAST_WEIGHT]
        if faint:
            raise EnsembleError(f"the weight of {', '.join(faint)} is less than {_LEAST_WEIGHT:g} of all: it would not count; leave it out")
        if self.name in {member.model for member in self.members}:
            raise EnsembleError(f"ensemble '{self.name}' has a member of the same name: name one of them otherwise")

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights, normalised to sum 1."""
        return normalised_weights([member.weight for member in self.members])

    def extended(self, versions: Mapping[str, int], weights: Mapping[str, float], average: str | None = None) -> Ensemble:
        """Make the models in ``versions`` members at these: existing members stay where they are, others are appended with weight 1.

        ``weights`` and ``average`` replace what they name; everything else stays.

        Raises:
            EnsembleError: a model that is named is a member at several versions; one with a weight is none.
        """
        names = [member.model for member in self.members]
        models = dict.fromkeys((*names, *versions))
        if unknown := sorted(set(weights) - set(models)):
            raise EnsembleError(f"a weight is given for {', '.join(unknown)}, which does not vote in '{self.name}': {', '.join(models)} do")
        twice = sorted({name for name in (*versions, *weights) if names.count(name) > 1})
        if twice:
            raise EnsembleError(
                f"ensemble '{self.name}' lets {', '.join(twice)} vote at several versions: which one is meant is not clear; "
                "take the others out of its config.pbtxt, or export under another name"
            )
        kept = [Member(vote.model, versions.get(vote.model, vote.version), weights.get(vote.model, vote.weight)) for vote in self.members]
        added = [Member(name, version, weights.get(name, 1.0)) for name, version in versions.items() if name not in names]
        return Ensemble(self.name, (*kept, *added), average or self.average)

    def digest(self, num_classes: int, max_batch_size: int, *, form: int = FORM) -> str:
        """Name what is computed, in 16 hexadecimal digits: the same computation gets the same name, any other another one.

        Weights count as the graph holds them, normalised and in float32: 1 and 1 compute what 2 and 2 do. No model of one ``form`` has the
        name of one of another.
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
    """Return weights above 0 so that they sum to 1."""
    largest = max(weights)  # a sum of weights could overflow
    shares = [weight / largest for weight in weights]
    total = math.fsum(shares)
    return tuple(share / total for share in shares)


def averaging_model_name(ensemble: Ensemble, num_classes: int, max_batch_size: int) -> str:
    """Name the model that averages ``ensemble`` by what it computes."""
    return f"{RESERVED_PREFIXES[0]}{ensemble.digest(num_classes, max_batch_size)}"


def two_model_names(ensemble: Ensemble, num_classes: int, max_batch_size: int) -> list[str]:
    """Name the two models that averaged ``ensemble`` in the old form: of its ``probabilities``, and of its other outputs."""
    digest = ensemble.digest(num_classes, max_batch_size, form=TWO_MODEL_FORM)
    return [f"{prefix}{digest}" for prefix in RESERVED_PREFIXES]
