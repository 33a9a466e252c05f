"""Edits of member lists; members are named by `MODEL` or `MODEL@VERSION`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, strategies as st

from defensemble_export import EnsembleError
from defensemble_export.editing.membership import add_members, find_member, new_member, parse_member, remove_members, set_weights
from defensemble_repository.ensemble import Ensemble, Member
from tests.support import tiny
from tests.support.ensembles import ensembles

OURS = Ensemble("ours", (Member("a", 1, 2.0), Member("b", 1), Member("b", 3, 0.5), Member("c", 7)), "logits")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tiny.write_repository(tmp_path / "place" / "repository")
    tiny.write_second_version(folder, "beta", 5)
    return folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [("keep0.3", ("keep0.3", None)), ("a@1", ("a", 1)), ("a@12", ("a", 12)), (f"a@{2**63 - 1}", ("a", 2**63 - 1))],
)
def test_members_are_named_by_model_and_version(text: str, expected: tuple[str, int | None]) -> None:
    assert parse_member(text) == expected


@pytest.mark.parametrize("text", ["a@", "a@0", "a@-1", "a@01", "a@1.0", "a@x", "a@1@2", "a@ 1", f"a@{2**63}", "a@" + "9" * 5000, "a@²"])
def test_a_version_is_an_integer_from_1(text: str) -> None:
    with pytest.raises(EnsembleError, match=r"MODEL or MODEL@VERSION, with a version from 1, such as keep0.3@2; got"):
        parse_member(text)


@pytest.mark.parametrize("text", ["", "@1", "../a", "a/b@1", "a b", ".a", "average_0123", "uncertainty_x@1", "ä", "a\n", "x" * 101])
def test_rejects_invalid_model_names(text: str) -> None:
    with pytest.raises(EnsembleError, match=r"is not a valid model name|reserved prefix"):
        parse_member(text)


@pytest.mark.parametrize("text", ["history.jsonl", "pending-edit.json@1"])
def test_rejects_names_of_files_that_edits_write(text: str) -> None:
    with pytest.raises(EnsembleError, match="reserved for a file in the repository"):
        parse_member(text)


def test_weights_of_numpy_become_plain_floats(repository: Path) -> None:
    member = new_member(repository, "alpha", np.float32(0.5))
    assert (member.weight, type(member.weight)) == (0.5, float)
    assert type(set_weights(OURS, {"a": np.int64(3)}).members[0].weight) is float


def test_the_default_version_is_the_newest(repository: Path) -> None:
    assert new_member(repository, "beta") == Member("beta", 2)
    assert new_member(repository, "beta@1", 0.5) == Member("beta", 1, 0.5)
    for name in ("10", "9", "x", "03"):
        (repository / "alpha" / name).mkdir()
    assert new_member(repository, "alpha") == Member("alpha", 10), "versions are compared as numbers"


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("gamma", "has no network 'gamma'; it has alpha, beta"),
        ("alpha@2", "'alpha' has no version 2; .*/alpha has 1"),
    ],
)
def test_rejects_missing_models_and_versions(repository: Path, text: str, facts: str) -> None:
    with pytest.raises(EnsembleError, match=facts):
        new_member(repository, text)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_must_be_finite_and_above_0(repository: Path, weight: float) -> None:
    with pytest.raises(EnsembleError, match=f"must be finite and above 0, got {weight}"):
        new_member(repository, "alpha", weight)
    with pytest.raises(EnsembleError, match=f"weight of 'a' must be finite and above 0, got {weight:g}; .*`.* remove ours a`"):
        set_weights(OURS, {"a": weight})


def test_members_are_appended_or_replace_one() -> None:
    assert add_members(OURS, [Member("d"), Member("a", 2)]).members == (*OURS.members, Member("d"), Member("a", 2))
    assert add_members(OURS, [Member("d", 1, 4.0)], in_place_of="b@3").members == (*OURS.members[:2], Member("d", 1, 4.0), OURS.members[3])
    assert add_members(OURS, [Member("c", 8)], in_place_of="c").members[3] == Member("c", 8)
    invalid: list[Callable[[], object]] = [
        lambda: add_members(OURS, [Member("a")]),
        lambda: add_members(OURS, [Member("b", 1)], in_place_of="a"),
        lambda: add_members(OURS, [Member("d"), Member("e")], in_place_of="a"),
        lambda: add_members(OURS, [], in_place_of="a"),
        lambda: add_members(OURS, [Member("d")], in_place_of="b"),
        lambda: add_members(OURS, [Member("d")], in_place_of="x"),
    ]
    for act in invalid:
        with pytest.raises(EnsembleError):
            act()


def test_members_are_removed_by_name_and_one_must_remain() -> None:
    assert remove_members(OURS, ["b@1", "a"]).members == OURS.members[2:]
    assert remove_members(OURS, ["a", "a@1"]).members == OURS.members[1:], "duplicate names count once"
    with pytest.raises(EnsembleError, match="'b' is a member of 'ours' at several versions; name one of b@1, b@3"):
        remove_members(OURS, ["b"])
    with pytest.raises(EnsembleError, match="'d' is not a member of 'ours'; its members are a@1, b@1, b@3, c@7"):
        remove_members(OURS, ["d"])
    with pytest.raises(EnsembleError, match="'c@1' is not a member"):
        find_member(OURS, "c@1")
    with pytest.raises(EnsembleError, match=r"'ours' would have no members, expected at least one.*`defensemble ensemble delete ours`"):
        remove_members(OURS, ["a", "b@1", "b@3", "c"])


def test_a_weight_is_set_once() -> None:
    assert set_weights(OURS, {"b@3": 2, "c": 0.25}).members == (*OURS.members[:2], Member("b", 3, 2), Member("c", 7, 0.25))
    with pytest.raises(EnsembleError, match="a@1 is given two weights; name it once"):
        set_weights(OURS, {"a": 1, "a@1": 2})


@given(ensembles(), st.data())
def test_adding_and_removing_restores_the_ensemble(ensemble: Ensemble, data: st.DataObject) -> None:
    new = Member("new", data.draw(st.integers(1, 9)), max(member.weight for member in ensemble.members))
    # Another member must not make a share too small; that error is tested elsewhere.
    assume(min(ensemble.weights) > 1e-6)
    assume(ensemble.name != "new" and all(member.model != "new" for member in ensemble.members))
    assert remove_members(add_members(ensemble, [new]), [f"new@{new.version}"]) == ensemble
    old = data.draw(st.sampled_from(ensemble.members))
    swapped = add_members(ensemble, [new], in_place_of=f"{old.model}@{old.version}")
    assert add_members(swapped, [old], in_place_of="new") == ensemble
    assert (swapped.name, swapped.average) == (ensemble.name, ensemble.average)
    weights = {f"{member.model}@{member.version}": member.weight for member in ensemble.members}
    assert set_weights(ensemble, weights) == ensemble
