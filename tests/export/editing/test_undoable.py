"""The edits that a rollback can undo: a stack per ensemble."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

from hypothesis import given, strategies as st

from defensemble_export.editing import Edit, undoable_edits
from tests.export.editing.test_history import make_edit


def numbers(history: list[Edit], ensemble: str = "ensemble") -> list[int]:
    return [int(item.id, 16) for item in undoable_edits(history, ensemble)]


def rolled_back(number: int, *undone: int, **other: Any) -> Edit:
    return make_edit(number, action="rollback", undoes=tuple(f"{item:012x}" for item in undone), **other)


def test_two_rollbacks_go_back_two_edits() -> None:
    history = [make_edit(1), make_edit(2), make_edit(3)]
    assert numbers(history) == [1, 2, 3]
    history.append(rolled_back(4, 3))
    assert numbers(history) == [1, 2]
    history.append(rolled_back(5, 2))
    assert numbers(history) == [1]
    history.append(make_edit(6))
    assert numbers(history) == [1, 6]
    history.append(rolled_back(7, 6, 1))
    assert numbers(history) == []


def test_every_ensemble_has_its_own_edits() -> None:
    other = {"ensemble": "canary", "before": None, "after": None}
    history = [
        make_edit(1),
        make_edit(2, **other),
        make_edit(3),
        rolled_back(4, 2, 3, **other),
    ]
    assert numbers(history) == [1, 3]
    assert numbers(history, "canary") == []
    assert numbers(history, "none") == numbers([]) == []


@given(st.lists(st.integers(0, 3), max_size=30))
def test_undoable_edits_form_a_stack(moves: list[int]) -> None:
    history: list[Edit] = []
    stack: list[tuple[int, int]] = []
    state = 0
    for number, undo in enumerate(moves, 1):
        if undo == 0 or undo > len(stack):
            history.append(make_edit(number))
            stack.append((number, state))
            state = number
        else:
            undone = [stack.pop() for _ in range(undo)]
            history.append(rolled_back(number, *(item for item, _ in undone)))
            state = undone[-1][1]
        assert numbers(history) == [item for item, _ in stack]
    # Undoing all remaining edits restores the first state.
    assert [before for _, before in stack[:1]] in ([0], [])


def test_edits_are_values() -> None:
    assert pickle.loads(pickle.dumps(make_edit(1))) == make_edit(1)
    assert replace(make_edit(1), message="why").message == "why"
