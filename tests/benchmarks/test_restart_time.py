"""The benchmark of restarts: its timing and its figure."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.common.figures import exit_status
from benchmarks.restart_time import GOAL_S, compute_figures, measure, page
from tests.support import tiny


@pytest.mark.slow
def test_restarts_are_timed_until_the_response_is_correct() -> None:
    image = tiny.images(1)
    expected = np.mean([tiny.softmax(tiny.logits(seed, image)) for seed in (1, 2)], axis=0)
    result = measure([tiny.member("alpha", 1), tiny.member("beta", 2)], image, expected, rounds=2)
    assert len(result["first_right_answer_s"]) == len(result["all_answers_checked_s"]) == 2
    assert min(result["first_right_answer_s"]) > 0
    text = page({**result, "quick": True, "note": "A note."}, "x.json")
    assert "A note." in text
    assert "x.json" in text
    assert "too short" in text


@pytest.mark.parametrize(("seconds", "status"), [(GOAL_S, 0), (GOAL_S + 0.2, 1)])
def test_the_figure_is_the_median(seconds: float, status: int) -> None:
    assert exit_status(compute_figures([seconds, seconds - 0.5, 9.0])) == status
