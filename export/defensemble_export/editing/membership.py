"""The members of an ensemble, named as operators write them: found, added, removed and given other weights."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.errors import ConfigError, EnsembleError
from defensemble_repository.names import check_name
from defensemble_repository.reader import MAX_VERSION, versions_in
from defensemble_repository.view import RepositoryView

from .plan import no_network_text


def parse_member(text: str) -> tuple[str, int | None]:
    """Read `MODEL` or `MODEL@VERSION`: the name, and the version where one is given; EnsembleError where it is neither."""
    model, at, version = text.partition("@")
    if at and not (re.fullmatch("[1-9][0-9]{0,18}", version) and int(version) <= MAX_VERSION):
        raise EnsembleError(f"a vote is named MODEL or MODEL@VERSION, the version a number from 1, such as keep0.3@2; got {text!r:.120}")
    return check_name(model), int(version) if at else None


def new_member(repository: Path, text: str, weight: float = 1.0) -> Member:
    """Make the member that `MODEL` or `MODEL@VERSION` (by default the newest) names in `repository`; EnsembleError where there is none."""
    model, version = parse_member(text)
    folder = repository / model
    there = versions_in(folder) if folder.is_dir() else []
    if not there:
        raise EnsembleError(no_network_text(RepositoryView(repository), f"'{model}'"))
    if _is_ensemble(RepositoryView(repository), model):
        raise EnsembleError(f"'{model}' is an ensemble, and only networks can vote: name its members (`defensemble ensemble show {model}`)")
    if version is not None and version not in there:
        raise EnsembleError(f"'{model}' has no version {version}: {folder} holds {', '.join(map(str, there))}")
    return Member(model, there[-1] if version is None else version, _number(model, weight))


def added(ensemble: Ensemble, votes: Sequence[Member], *, in_place_of: str | None = None) -> Ensemble:
    """Add `votes` as members, or put the only one of them in the place of another; EnsembleError where that is no member."""
    if in_place_of is None:
        return dataclasses.replace(ensemble, members=(*ensemble.members, *votes))
    if len(votes) != 1:
        raise EnsembleError(f"one vote can take the place of '{in_place_of}', got {len(votes)}: name one")
    old = find_member(ensemble, in_place_of)
    members = tuple(votes[0] if vote == old else vote for vote in ensemble.members)
    return dataclasses.replace(ensemble, members=members)


def removed(ensemble: Ensemble, names: Sequence[str]) -> Ensemble:
    """Remove the members that `names` (`MODEL` or `MODEL@VERSION`) name; EnsembleError where one is none, or nobody is left."""
    gone = [find_member(ensemble, name) for name in names]
    left = tuple(vote for vote in ensemble.members if vote not in gone)
    if not left:
        raise EnsembleError(
            f"'{ensemble.name}' would have no members, and needs at least one: to take it out of service as a whole, "
            f"remove it: `defensemble ensemble delete {ensemble.name}`"
        )
    return dataclasses.replace(ensemble, members=left)


def reweighted(ensemble: Ensemble, weights: Mapping[str, float]) -> Ensemble:
    """Give members, by `MODEL` or `MODEL@VERSION`, other weights, which are finite and above 0, else an EnsembleError."""
    chosen: dict[Member, float] = {}
    for name, weight in weights.items():
        vote = find_member(ensemble, name)
        if vote in chosen:
            raise EnsembleError(f"{vote.model}@{vote.version} is given two weights: name it once")
        number = _number(name, weight)
        if not (math.isfinite(number) and number > 0):
            command = f"remove {ensemble.name} {name}" if len(ensemble.members) > 1 else f"delete {ensemble.name}"
            raise EnsembleError(
                f"weight of '{name}' must be finite and above 0, got {number:g}; to stop its vote: `defensemble ensemble {command}`"
            )
        chosen[vote] = number
    members = tuple(dataclasses.replace(vote, weight=chosen.get(vote, vote.weight)) for vote in ensemble.members)
    return dataclasses.replace(ensemble, members=members)


def find_member(ensemble: Ensemble, text: str) -> Member:
    """Find the member that `MODEL` or `MODEL@VERSION` names in `ensemble`; EnsembleError where there are none or several."""
    model, version = parse_member(text)
    found = [vote for vote in ensemble.members if vote.model == model and version in (None, vote.version)]
    if len(found) > 1:
        several = ", ".join(f"{vote.model}@{vote.version}" for vote in found)
        raise EnsembleError(f"'{model}' votes at several versions in '{ensemble.name}': say which, {several}")
    if not found:
        voting = ", ".join(f"{vote.model}@{vote.version}" for vote in ensemble.members)
        raise EnsembleError(f"'{text}' does not vote in '{ensemble.name}': {voting} do")
    return found[0]


def _number(name: str, weight: object) -> float:
    """Return a weight as a plain float: one of numpy's could not be written as JSON."""
    try:
        if isinstance(weight, (str, bytes, bool)):
            raise TypeError("it is no number")
        return float(weight)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise EnsembleError(f"weight of '{name}' must be a number above 0, got {weight!r:.80}") from error


def _is_ensemble(files: RepositoryView, model: str) -> bool:
    try:
        return files.has(model) and files.config(model).platform == "ensemble"
    except ConfigError:
        return False  # the checks tell
