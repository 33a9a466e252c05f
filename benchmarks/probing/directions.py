"""Which directions of the paper's claims the results of the probes show, by paired tests and intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common.markdown import table_row

_LEVEL, _SMALLEST = 0.05, 1e-12
_YES, _REVERSE, _NO_DIFFERENCE = "yes", "**no, the reverse**", "no difference shown"
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Direction:
    """A claim that one target does better than another one.

    Attributes:
        claim: The claim, in words.
        result: Name of the result.
        better: The target that should do better.
        worse: The other target.
        condition: Condition whose accuracies are compared by McNemar's test; None to compare `value` by intervals.
        value: Returns value, low and high of a target's entry.
    """

    claim: str
    result: str
    better: str
    worse: str
    condition: str | None = None
    value: Callable[[Result], Mapping[str, Any] | None] | None = None


def _score(target: Result) -> Mapping[str, Any] | None:
    score: Mapping[str, Any] | None = target["attack"]["s_m"]
    return score


def _shape_bias(target: Result) -> Mapping[str, Any] | None:
    return next((folder["shape_bias"] for folder in target["details"].get("folders", ()) if folder["kind"] == "cue conflict"), None)


CLAIMS = (
    Direction("a defective network is less accurate on clean images", "transfer-standard", "standard", "keep0.5", "clean"),
    Direction("... and more accurate on FGSM examples of a standard network", "transfer-standard", "keep0.5", "standard", "table2-fgsm"),
    Direction("... and on PGD examples of it", "transfer-standard", "keep0.5", "standard", "table2-pgd"),
    Direction("... and on PGD examples of a defective network with other masks", "transfer-defective", "keep0.5", "standard", "table2-pgd"),
    Direction("... and more than adversarial training", "transfer-standard", "keep0.5", "adversarial", "table2-pgd"),
    Direction("... and under noise of sigma 16/255", "noise", "keep0.5", "standard", "sigma 16"),
    Direction("... and less accurate on 4 x 4 shuffled patches", "shuffle", "standard", "keep0.5", "k 4"),
    Direction("... and needs larger perturbations, S(M)", "boundary", "keep0.5", "standard", value=_score),
    Direction("... and decides more by shape, the shape bias", "cue-conflict", "keep0.5", "standard", value=_shape_bias),
)
GAINS = tuple(
    Direction(f"the average of one keep gains on its member {member}{on}", "transfer-standard", "average-keep0.5", member, condition)
    for member in ("keep0.5", "keep0.5-b", "keep0.5-c")
    for on, condition in ((", clean", "clean"), (" on PGD examples of a standard network", "table2-pgd"))
)
"""One claim of the paper, that an ensemble is better than its members, as comparisons with each member."""


def directions_text(results: Mapping[str, Result]) -> str:
    """Return how many claims held, and tables in Markdown: each claim, what was measured, and whether it held.

    Args:
        results: The results, as JSON, by name.
    """
    gains = "The paper also claims that an ensemble is better than each of its members."
    claims = _table("claims of the paper on single networks", CLAIMS, results)
    return "\n".join([*claims, "", gains, *_table("comparisons with a member", GAINS, results)])


def _table(what: str, directions: Sequence[Direction], results: Mapping[str, Result]) -> list[str]:
    verdicts = [_verdict(direction, results.get(direction.result)) for direction in directions]
    words = [word for _, word in verdicts]
    not_measured = sum(word not in (_YES, _REVERSE, _NO_DIFFERENCE) for word in words)
    summary = (
        f"Of {len(words)} {what}: {words.count(_YES)} held for these networks, {words.count(_REVERSE)} reversed, "
        f"{words.count(_NO_DIFFERENCE)} without a difference that was shown, {not_measured} not measured."
    )
    rows = [table_row(direction.claim, *verdict) for direction, verdict in zip(directions, verdicts, strict=True)]
    return [summary, "", "| claim | measured | held? |", "|---|---|---|", *rows]


def _verdict(direction: Direction, result: Result | None) -> tuple[str, str]:
    entries = {} if result is None else {target["name"]: target for target in result["targets"]}
    if direction.better not in entries or direction.worse not in entries:
        return "-", "not run"
    better, worse = entries[direction.better], entries[direction.worse]
    names = f"`{direction.better}` {{}}, `{direction.worse}` {{}}"
    if direction.value is not None:
        first, second = direction.value(better), direction.value(worse)
        if first is None or second is None or first["value"] is None or second["value"] is None:
            return "-", "not measured"
        text = names.format(*(f"{one['value']:.3g} ({one['low']:.3g} to {one['high']:.3g})" for one in (first, second)))
        is_apart = first["low"] > second["high"] or second["low"] > first["high"]
        return text, _word(first["value"] > second["value"], is_apart)
    assert result is not None
    accuracies = [_accuracy(target, str(direction.condition)) for target in (better, worse)]
    test = _test(result, direction)
    if test is None or None in accuracies:
        return "-", "not measured"
    text = names.format(*(f"{100 * accuracy:.1f} %" for accuracy in accuracies if accuracy is not None))
    p = f"p = {test['p']:.2g}" if test["p"] > _SMALLEST else f"p < {_SMALLEST:g}"
    return f"{text} (n = {test['n']:,}, {p})", _word(accuracies[0] > accuracies[1], test["p"] < _LEVEL)  # type: ignore[operator]


def _word(is_right: bool, is_shown: bool) -> str:
    if not is_shown:
        return _NO_DIFFERENCE
    return _YES if is_right else _REVERSE


def _accuracy(target: Result, condition: str) -> float | None:
    rates = {"clean": target["clean"], **{entry["name"]: entry["accuracy"] for entry in target["conditions"]}}
    rate = rates.get(condition)
    return None if rate is None else rate["value"]


def _test(result: Result, direction: Direction) -> Mapping[str, Any] | None:
    pair = {direction.better, direction.worse}
    for test in result["comparisons"]:
        if {test["a"], test["b"]} == pair and test["condition"] == direction.condition:
            found: Mapping[str, Any] = test
            return found
    return None
