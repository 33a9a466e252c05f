"""What a rollback may undo: the edits of an ensemble that stand, the last one first."""

from __future__ import annotations

import pickle
from dataclasses import replace

from hypothesis import given, strategies as st

from defensemble_export.editing import Edit, undoable_edits
from tests.export.editing.test_history import edit


def numbers(history: list[Edit], ensemble: str = "ensemble") -> list[int]:
    return [int(one.id, 16) for one in undoable_edits(history, ensemble)]


def rolled_back(number: int, *undone: int) -> Edit:
    return edit(number, action="rollback", undoes=tuple(f"{one:012x}" for one in undone))


def test_two_rollbacks_in_a_row_go_back_two_edits() -> None:
    history = [edit(1), edit(2), edit(3)]
    assert numbers(history) == [1, 2, 3]
    history.append(rolled_back(4, 3))
    assert numbers(history) == [1, 2]
    history.append(rolled_back(5, 2))
    assert numbers(history) == [1]
    history.append(edit(6))
    assert numbers(history) == [1, 6]
    history.append(rolled_back(7, 6, 1))
    assert numbers(history) == []


def test_each_ensemble_has_its_own() -> None:
    other = {"ensemble": "canary", "before": None, "after": None}
    history = [edit(1), edit(2, **other), edit(3), edit(4, action="rollback", undoes=(f"{2:012x}", f"{3:012x}"), **other)]
    assert numbers(history) == [1, 3]
    assert numbers(history, "canary") == []
    assert numbers(history, "none") == numbers([]) == []


@given(st.lists(st.integers(0, 3), max_size=30))
def test_what_may_be_undone_is_a_stack(moves: list[int]) -> None:
    history: list[Edit] = []
    stack: list[tuple[int, int]] = []
    state = 0
    for number, undo in enumerate(moves, 1):
        if undo == 0 or undo > len(stack):
            history.append(edit(number))
            stack.append((number, state))
            state = number
        else:
            undone = [stack.pop() for _ in range(undo)]
            history.append(rolled_back(number, *(one for one, _ in undone)))
            state = undone[-1][1]
        assert numbers(history) == [one for one, _ in stack]
    # Undoing all that is left, one by one, ends where it began.
    assert [before for _, before in stack[:1]] in ([0], [])


def test_an_edit_is_a_value() -> None:
    assert pickle.loads(pickle.dumps(edit(1))) == edit(1)
    assert replace(edit(1), message="why").message == "why"
