"""What differs between two states of an ensemble, in words."""

from __future__ import annotations

from defensemble_repository.ensemble import Ensemble, Member

_Key = tuple[str, int]


def changes_between(before: Ensemble | None, after: Ensemble | None) -> list[str]:
    """What was changed, one text a change; none where both are equal. None stands for an ensemble that does not exist.

    A member that votes at one other version than it did is told as such, and a share, in per cent, where a weight is told.
    """
    if before is None or after is None:
        return _from_nothing(before, after)
    told = [] if before.name == after.name else [f"is called {after.name}, not {before.name}"]
    if before.average != after.average:
        told.append(f"averages {after.average}, not {before.average}")
    old, new = _by_key(before), _by_key(after)
    switched = _switched(old, new)
    for key, (vote, share) in old.items():
        to = switched.get(key, key)
        if to not in new:
            told.append(f"removes {_name(vote)}")
            continue
        vote_now, share_now = new[to]
        weights = f"{number_text(vote.weight)} -> {number_text(vote_now.weight)} ({_percent(share)} -> {_percent(share_now)})"
        differs = vote.weight != vote_now.weight
        if to != key:
            told.append(f"{vote.model}: version {vote.version} -> {vote_now.version}" + (f", weight {weights}" if differs else ""))
        elif differs:
            told.append(f"weight of {_name(vote)}: {weights}")
    kept = [switched.get(key, key) for key in old if switched.get(key, key) in new]
    added = [key for key in new if key not in kept]
    told += [f"adds {_name(new[key][0])} with weight {number_text(new[key][0].weight)} ({_percent(new[key][1])})" for key in added]
    if [*kept, *added] != list(new):
        told.append(f"order of members: {', '.join(_name(vote) for vote in after.members)}")
    return told


def number_text(value: float) -> str:
    """A weight as a person writes it, exactly: 1, not 1.0."""
    return repr(float(value)).removesuffix(".0")


def _from_nothing(before: Ensemble | None, after: Ensemble | None) -> list[str]:
    if after is not None:
        votes = [
            f"adds {_name(vote)} with weight {number_text(vote.weight)} ({_percent(share)})" for vote, share in _by_key(after).values()
        ]
        return [f"creates {after.name}, which averages {after.average}", *votes]
    return [] if before is None else [f"deletes {before.name}"]


def _by_key(ensemble: Ensemble) -> dict[_Key, tuple[Member, float]]:
    return {(vote.model, vote.version): (vote, share) for vote, share in zip(ensemble.members, ensemble.weights, strict=True)}


def _switched(old: dict[_Key, tuple[Member, float]], new: dict[_Key, tuple[Member, float]]) -> dict[_Key, _Key]:
    """The votes that moved to another version: of models of which one version left and one came."""
    left: dict[str, list[_Key]] = {}
    came: dict[str, list[_Key]] = {}
    for keys, others, found in ((old, new, left), (new, old, came)):
        for key in keys:
            if key not in others:
                found.setdefault(key[0], []).append(key)
    return {keys[0]: came[model][0] for model, keys in left.items() if len(keys) == 1 and len(came.get(model, [])) == 1}


def _name(vote: Member) -> str:
    return f"{vote.model}@{vote.version}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
