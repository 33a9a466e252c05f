"""The differences between two states of an ensemble, in words."""

from __future__ import annotations

from defensemble_repository.ensemble import Ensemble, Member

_Key = tuple[str, int]


def changes_between(before: Ensemble | None, after: Ensemble | None) -> list[str]:
    """Describe the differences between two states of an ensemble, one text per change.

    A member that moved to another version is reported as moved, not as removed and added. Weights are shown with their share of the total
    in per cent.

    Args:
        before: The old state; None if the ensemble did not exist.
        after: The new state; None if the ensemble no longer exists.

    Returns:
        The changes; empty if both states are equal.
    """
    if before is None or after is None:
        return _creation_or_deletion(before, after)
    changes = [] if before.name == after.name else [f"is called {after.name}, not {before.name}"]
    if before.average != after.average:
        changes.append(f"averages {after.average}, not {before.average}")
    old, new = _by_key(before), _by_key(after)
    moved = _moved_keys(old, new)
    for key, (member, share) in old.items():
        new_key = moved.get(key, key)
        if new_key not in new:
            changes.append(f"removes {_name(member)}")
            continue
        new_member, new_share = new[new_key]
        weights = f"{format_weight(member.weight)} -> {format_weight(new_member.weight)} ({_percent(share)} -> {_percent(new_share)})"
        is_reweighted = member.weight != new_member.weight
        if new_key != key:
            text = f"{member.model}: version {member.version} -> {new_member.version}"
            changes.append(text + (f", weight {weights}" if is_reweighted else ""))
        elif is_reweighted:
            changes.append(f"weight of {_name(member)}: {weights}")
    kept = [moved.get(key, key) for key in old if moved.get(key, key) in new]
    added = [key for key in new if key not in kept]
    changes += [_addition(*new[key]) for key in added]
    if [*kept, *added] != list(new):
        changes.append(f"order of members: {', '.join(map(_name, after.members))}")
    return changes


def format_weight(value: float) -> str:
    """Format a weight exactly, as a person writes it: 1, not 1.0."""
    return repr(float(value)).removesuffix(".0")


def _creation_or_deletion(before: Ensemble | None, after: Ensemble | None) -> list[str]:
    if after is not None:
        return [f"creates {after.name}, which averages {after.average}", *(_addition(*row) for row in _by_key(after).values())]
    return [] if before is None else [f"deletes {before.name}"]


def _addition(member: Member, share: float) -> str:
    return f"adds {_name(member)} with weight {format_weight(member.weight)} ({_percent(share)})"


def _by_key(ensemble: Ensemble) -> dict[_Key, tuple[Member, float]]:
    rows = zip(ensemble.members, ensemble.weights, strict=True)
    return {(member.model, member.version): (member, share) for member, share in rows}


def _moved_keys(old: dict[_Key, tuple[Member, float]], new: dict[_Key, tuple[Member, float]]) -> dict[_Key, _Key]:
    """Map old to new keys of members that moved to another version: models that lost one version and gained one."""
    lost: dict[str, list[_Key]] = {}
    gained: dict[str, list[_Key]] = {}
    for keys, others, changed in ((old, new, lost), (new, old, gained)):
        for key in keys:
            if key not in others:
                changed.setdefault(key[0], []).append(key)
    return {keys[0]: gained[model][0] for model, keys in lost.items() if len(keys) == 1 and len(gained.get(model, [])) == 1}


def _name(member: Member) -> str:
    return f"{member.model}@{member.version}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
