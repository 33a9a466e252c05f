"""Descriptions of the differences between two ensembles."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from defensemble_export.editing import changes_between
from defensemble_repository.ensemble import Ensemble, Member
from tests.support.ensembles import ensembles
from tests.support.facts import assert_each

A, B, C = Member("keep0.1"), Member("keep0.3"), Member("keep0.5")
EQUAL = [Member(name) for name in "wxyz"]
REMOVED = ["removes keep0.3@1", "removes keep0.3@2"]


def of(*members: Member, average: str = "probabilities", name: str = "ensemble") -> Ensemble:
    return Ensemble(name, members, average)


@pytest.mark.parametrize(
    ("before", "after", "facts"),
    [
        (of(A, B), of(A, B), []),
        (of(A, B, C, Member("x")), of(A, B, C, Member("x"), Member("keep0.3", 2)), ["adds | keep0.3@2 | 1 | 20.0 %"]),
        (of(A, B, C), of(A, B), ["removes | keep0.5@1"]),
        (of(A, *EQUAL), of(Member("keep0.1", 1, 2), *EQUAL), ["weight | keep0.1@1 | 1 -> 2 | 20.0 % -> 33.3 %"]),
        (of(A, B), of(A, B, average="logits"), ["logits | probabilities"]),
        (of(A, B), of(A, Member("keep0.3", 2)), ["keep0.3 | version | 1 -> 2"]),
        (of(A, B), of(A, Member("keep0.3", 2, 0.25)), ["keep0.3 | version | 1 -> 2 | weight | 1 -> 0.25 | 50.0 % -> 20.0 %"]),
        (of(A, B), of(B, A), ["order | keep0.3@1, keep0.1@1"]),
        # With several versions, it is unknown which one was replaced.
        (of(B, Member("keep0.3", 2)), of(Member("keep0.3", 3)), [*REMOVED, "adds | keep0.3@3 | 1 | 100.0 %"]),
        (of(A), of(C, A), ["adds | keep0.5@1 | 1 | 50.0 %", "order | keep0.5@1, keep0.1@1"]),
        (of(A, B), of(B, C), ["removes | keep0.1@1", "adds | keep0.5@1 | 1 | 50.0 %"]),
        (of(A), of(A, name="other"), ["other | ensemble"]),
        (None, of(A), ["creates | ensemble | probabilities", "adds | keep0.1@1 | 1 | 100.0 %"]),
        (of(A), None, ["deletes | ensemble"]),
        (None, None, []),
    ],
)  # fmt: skip
def test_describes_changes(before: Ensemble | None, after: Ensemble | None, facts: list[str]) -> None:
    assert_each(changes_between(before, after), *facts)


@given(st.data())
def test_describes_no_changes_exactly_for_equal_ensembles(data: st.DataObject) -> None:
    before = data.draw(ensembles())
    members = list(before.members)
    kind = data.draw(st.sampled_from(["same", "order", "weight", "version", "average", "name", "any"]))
    after = before
    if kind == "order":
        after = Ensemble(before.name, tuple(data.draw(st.permutations(members))), before.average)
    elif kind in ("weight", "version"):
        index = data.draw(st.integers(0, len(members) - 1))
        old = members[index]
        keys = {(member.model, member.version) for member in members}
        version = old.version if kind == "weight" else next(number for number in range(1, 9) if (old.model, number) not in keys)
        # The smallest weight increases the other shares, so that none becomes too small.
        members[index] = Member(old.model, version, min(member.weight for member in members) if kind == "weight" else old.weight)
        after = Ensemble(before.name, tuple(members), before.average)
    elif kind == "average":
        after = Ensemble(before.name, before.members, "logits" if before.average == "probabilities" else "probabilities")
    elif kind in ("name", "any"):
        after = Ensemble("another", before.members, before.average) if kind == "name" else data.draw(ensembles(before.name))
    assert (changes_between(before, after) == []) == (before == after)
    assert changes_between(after, after) == []


@given(ensembles(), ensembles())
def test_names_every_added_and_removed_member(before: Ensemble, after: Ensemble) -> None:
    text = "\n".join(changes_between(before, after))
    old, new = ({(member.model, member.version) for member in ensemble.members} for ensemble in (before, after))
    for model, _ in old ^ new:
        assert model in text
