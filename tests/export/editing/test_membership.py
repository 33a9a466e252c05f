"""Edits of votes as values: named as operators write them, and never anything but what was named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, strategies as st

from defensemble_export import EnsembleError
from defensemble_export.editing.membership import added, find_member, new_member, parse_member, removed, reweighted
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
def test_a_vote_is_named_by_model_and_version(text: str, expected: tuple[str, int | None]) -> None:
    assert parse_member(text) == expected


@pytest.mark.parametrize("text", ["a@", "a@0", "a@-1", "a@01", "a@1.0", "a@x", "a@1@2", "a@ 1", f"a@{2**63}", "a@" + "9" * 5000, "a@²"])
def test_a_version_is_a_number_from_1(text: str) -> None:
    with pytest.raises(EnsembleError, match=r"a vote is named MODEL or MODEL@VERSION, the version a number from 1, such as keep0.3@2; got"):
        parse_member(text)


@pytest.mark.parametrize("text", ["", "@1", "../a", "a/b@1", "a b", ".a", "average_0123", "uncertainty_x@1", "ä", "a\n", "x" * 101])
def test_a_model_is_named_as_triton_and_a_file_system_take_it(text: str) -> None:
    with pytest.raises(EnsembleError, match=r"is not a valid model name|reserved prefix"):
        parse_member(text)


@pytest.mark.parametrize("text", ["history.jsonl", "pending-edit.json@1"])
def test_no_model_has_the_name_of_a_file_that_edits_write(text: str) -> None:
    with pytest.raises(EnsembleError, match="reserved for a file in the repository"):
        parse_member(text)


def test_a_weight_of_numpy_can_be_written_down(repository: Path) -> None:
    vote = new_member(repository, "alpha", np.float32(0.5))
    assert (vote.weight, type(vote.weight)) == (0.5, float)
    assert type(reweighted(OURS, {"a": np.int64(3)}).members[0].weight) is float


def test_without_a_version_the_newest_is_meant(repository: Path) -> None:
    assert new_member(repository, "beta") == Member("beta", 2)
    assert new_member(repository, "beta@1", 0.5) == Member("beta", 1, 0.5)
    for name in ("10", "9", "x", "03"):
        (repository / "alpha" / name).mkdir()
    assert new_member(repository, "alpha") == Member("alpha", 10), "by number"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gamma", "holds no network 'gamma', it holds alpha, beta: name one, or export it first"),
        ("alpha@2", "'alpha' has no version 2: .*/alpha holds 1"),
    ],
)
def test_what_is_not_there_cannot_vote(repository: Path, text: str, told: str) -> None:
    with pytest.raises(EnsembleError, match=told):
        new_member(repository, text)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_finite_and_above_0(repository: Path, weight: float) -> None:
    with pytest.raises(EnsembleError, match=f"must be finite and above 0, got {weight}"):
        new_member(repository, "alpha", weight)
    with pytest.raises(
        EnsembleError, match=f"weight of 'a' must be finite and above 0, got {weight:g}; to stop its vote: `.* remove ours a`"
    ):
        reweighted(OURS, {"a": weight})


def test_votes_are_added_at_the_end_and_put_in_the_place_of_one() -> None:
    assert added(OURS, [Member("d"), Member("a", 2)]).members == (*OURS.members, Member("d"), Member("a", 2))
    assert added(OURS, [Member("d", 1, 4.0)], in_place_of="b@3").members == (*OURS.members[:2], Member("d", 1, 4.0), OURS.members[3])
    assert added(OURS, [Member("c", 8)], in_place_of="c").members[3] == Member("c", 8)
    refused: list[Callable[[], object]] = [
        lambda: added(OURS, [Member("a")]),
        lambda: added(OURS, [Member("b", 1)], in_place_of="a"),
        lambda: added(OURS, [Member("d"), Member("e")], in_place_of="a"),
        lambda: added(OURS, [], in_place_of="a"),
        lambda: added(OURS, [Member("d")], in_place_of="b"),
        lambda: added(OURS, [Member("d")], in_place_of="x"),
    ]
    for act in refused:
        with pytest.raises(EnsembleError):
            act()


def test_a_vote_is_removed_by_name_and_somebody_is_left() -> None:
    assert removed(OURS, ["b@1", "a"]).members == OURS.members[2:]
    assert removed(OURS, ["a", "a@1"]).members == OURS.members[1:], "named twice is named once"
    with pytest.raises(EnsembleError, match="'b' votes at several versions in 'ours': say which, b@1, b@3"):
        removed(OURS, ["b"])
    with pytest.raises(EnsembleError, match="'d' does not vote in 'ours': a@1, b@1, b@3, c@7 do"):
        removed(OURS, ["d"])
    with pytest.raises(EnsembleError, match="'c@1' does not vote"):
        find_member(OURS, "c@1")
    with pytest.raises(EnsembleError, match=r"'ours' would have no members, and needs at least one: .*`defensemble ensemble delete ours`"):
        removed(OURS, ["a", "b@1", "b@3", "c"])


def test_a_vote_is_reweighted_once() -> None:
    assert reweighted(OURS, {"b@3": 2, "c": 0.25}).members == (*OURS.members[:2], Member("b", 3, 2), Member("c", 7, 0.25))
    with pytest.raises(EnsembleError, match="a@1 is given two weights: name it once"):
        reweighted(OURS, {"a": 1, "a@1": 2})


@given(ensembles(), st.data())
def test_what_is_added_and_removed_again_leaves_what_was(ensemble: Ensemble, data: st.DataObject) -> None:
    new = Member("new", data.draw(st.integers(1, 9)), max(vote.weight for vote in ensemble.members))
    # Shares so uneven that one more vote could make one too small to count are refused, which is tested elsewhere.
    assume(min(ensemble.weights) > 1e-6)
    assume(ensemble.name != "new" and all(vote.model != "new" for vote in ensemble.members))
    assert removed(added(ensemble, [new]), [f"new@{new.version}"]) == ensemble
    gone = data.draw(st.sampled_from(ensemble.members))
    swapped = added(ensemble, [new], in_place_of=f"{gone.model}@{gone.version}")
    assert added(swapped, [gone], in_place_of="new") == ensemble
    assert (swapped.name, swapped.average) == (ensemble.name, ensemble.average)
    weights = {f"{vote.model}@{vote.version}": vote.weight for vote in ensemble.members}
    assert reweighted(ensemble, weights) == ensemble
