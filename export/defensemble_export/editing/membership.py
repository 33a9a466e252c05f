"""Edits of an ensemble's member list; members are named as operators write them, `MODEL` or `MODEL@VERSION`."""

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

from .plan import missing_networks_text


def parse_member(text: str) -> tuple[str, int | None]:
    """Split `MODEL` or `MODEL@VERSION` into its name and version.

    Raises:
        EnsembleError: The text has another form.
    """
    model, at, version = text.partition("@")
    if at and not (re.fullmatch("[1-9][0-9]{0,18}", version) and int(version) <= MAX_VERSION):
        raise EnsembleError(f"a member must be MODEL or MODEL@VERSION, with a version from 1, such as keep0.3@2; got {text!r:.120}")
    return check_name(model), int(version) if at else None


def new_member(repository: Path, text: str, weight: float = 1.0) -> Member:
    """Return the member that `text` names in `repository`, at the newest version by default.

    Args:
        repository: The repository.
        text: `MODEL` or `MODEL@VERSION`.
        weight: The weight of the new member.

    Raises:
        EnsembleError: There is no such network or version.
    """
    model, version = parse_member(text)
    folder = repository / model
    versions = versions_in(folder) if folder.is_dir() else []
    if not versions:
        raise EnsembleError(missing_networks_text(RepositoryView(repository), f"'{model}'"))
    if _is_ensemble(RepositoryView(repository), model):
        raise EnsembleError(
            f"'{model}' is an ensemble, but members must be networks; name its members instead (`defensemble ensemble show {model}`)"
        )
    if version is not None and version not in versions:
        raise EnsembleError(f"'{model}' has no version {version}; {folder} has {', '.join(map(str, versions))}")
    return Member(model, versions[-1] if version is None else version, _number(model, weight))


def add_members(ensemble: Ensemble, new: Sequence[Member], *, in_place_of: str | None = None) -> Ensemble:
    """Return the ensemble with more members.

    Args:
        ensemble: The ensemble.
        new: The new members.
        in_place_of: The member that the only new member replaces; by default, the new members are appended.

    Raises:
        EnsembleError: `in_place_of` is not a member, or several members are to replace it.
    """
    if in_place_of is None:
        return dataclasses.replace(ensemble, members=(*ensemble.members, *new))
    if len(new) != 1:
        raise EnsembleError(f"exactly one member can replace '{in_place_of}', got {len(new)}; name one")
    old = find_member(ensemble, in_place_of)
    members = tuple(new[0] if member == old else member for member in ensemble.members)
    return dataclasses.replace(ensemble, members=members)


def remove_members(ensemble: Ensemble, names: Sequence[str]) -> Ensemble:
    """Return the ensemble without the members `names`.

    Raises:
        EnsembleError: A name is not a member, or no member would be left.
    """
    removed = [find_member(ensemble, name) for name in names]
    kept = tuple(member for member in ensemble.members if member not in removed)
    if not kept:
        raise EnsembleError(
            f"'{ensemble.name}' would have no members, expected at least one. To take the ensemble out of service, run "
            f"`defensemble ensemble delete {ensemble.name}`"
        )
    return dataclasses.replace(ensemble, members=kept)


def set_weights(ensemble: Ensemble, weights: Mapping[str, float]) -> Ensemble:
    """Return the ensemble with other weights of some members.

    Raises:
        EnsembleError: A name is not a member, or a weight is not finite and above 0.
    """
    new_weights: dict[Member, float] = {}
    for name, weight in weights.items():
        member = find_member(ensemble, name)
        if member in new_weights:
            raise EnsembleError(f"{member.model}@{member.version} is given two weights; name it once")
        number = _number(name, weight)
        if not (math.isfinite(number) and number > 0):
            remove = f"remove {ensemble.name} {name}" if len(ensemble.members) > 1 else f"delete {ensemble.name}"
            raise EnsembleError(
                f"weight of '{name}' must be finite and above 0, got {number:g}; to stop using it, run `defensemble ensemble {remove}`"
            )
        new_weights[member] = number
    members = tuple(dataclasses.replace(member, weight=new_weights.get(member, member.weight)) for member in ensemble.members)
    return dataclasses.replace(ensemble, members=members)


def find_member(ensemble: Ensemble, text: str) -> Member:
    """Return the member of `ensemble` that `text` (`MODEL` or `MODEL@VERSION`) names.

    Raises:
        EnsembleError: No member or several members match.
    """
    model, version = parse_member(text)
    matches = [member for member in ensemble.members if member.model == model and version in (None, member.version)]
    if len(matches) > 1:
        names = ", ".join(f"{member.model}@{member.version}" for member in matches)
        raise EnsembleError(f"'{model}' is a member of '{ensemble.name}' at several versions; name one of {names}")
    if not matches:
        members = ", ".join(f"{member.model}@{member.version}" for member in ensemble.members)
        raise EnsembleError(f"'{text}' is not a member of '{ensemble.name}'; its members are {members}")
    return matches[0]


def _number(name: str, weight: object) -> float:
    """Return a weight as a plain float; numpy's floats cannot be written as JSON."""
    try:
        if isinstance(weight, (str, bytes, bool)):
            raise TypeError("not a number")
        return float(weight)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise EnsembleError(f"weight of '{name}' must be a number above 0, got {weight!r:.80}") from error


def _is_ensemble(files: RepositoryView, model: str) -> bool:
    try:
        return files.has(model) and files.config(model).platform == "ensemble"
    except ConfigError:
        return False  # the checks report it
