"""Recipes: presets, validation, and learning-rate schedules."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from defensemble_training import PRESETS, Recipe, SpecError, recipe_from_preset
from defensemble_training.trainer.recipe import one_cycle
from tests.support.facts import raises


def test_paper_preset_equals_the_authors_recipe() -> None:
    paper = PRESETS["paper"]
    assert (paper.learning_rate, paper.momentum, paper.nesterov, paper.weight_decay) == (0.1, 0.9, False, 5e-4)
    assert (paper.epochs, paper.batch_size, paper.milestones, paper.label_smoothing) == (350, 128, (150, 250), 0.0)
    assert round(32 * paper.largest_shift) == 4
    assert paper.flip
    per_epoch = 391
    rates = [paper.learning_rate_at(epoch * per_epoch, per_epoch) for epoch in (0, 149, 150, 249, 250, 349)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert paper.learning_rate_at(150 * per_epoch - 1, per_epoch) == pytest.approx(0.1)


def test_milestones_scale_with_the_epochs_and_need_the_schedule_steps() -> None:
    assert recipe_from_preset("paper", epochs=35).milestones == (15, 25)
    assert recipe_from_preset("paper", epochs=35, milestones=(1, 2)).milestones == (1, 2)
    assert recipe_from_preset("paper", schedule="one-cycle").milestones == ()
    assert recipe_from_preset("paper", epochs=1).milestones == ()


def test_numpy_numbers_become_python_numbers() -> None:
    recipe = recipe_from_preset("fast", epochs=np.int64(3), learning_rate=np.float32(0.5))
    assert json.loads(json.dumps(recipe.to_values()))["epochs"] == 3
    assert type(recipe.learning_rate) is float


@pytest.mark.parametrize("preset", list(PRESETS))
def test_recipe_json_round_trip(preset: str) -> None:
    recipe = recipe_from_preset(preset, label_smoothing=0.1, choose="best", held_out=5)
    assert Recipe(**json.loads(json.dumps(recipe.to_values()))) == recipe


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 184])
def test_one_cycle_rises_then_falls(steps: int) -> None:
    factors = [one_cycle(step, steps) for step in range(steps)]
    highest = factors.index(1.0)
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: highest + 1] == sorted(factors[: highest + 1])
    assert factors[highest:] == sorted(factors[highest:], reverse=True)
    assert highest == -(-steps // 4) - 1


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"epochs": 0}, "epochs | at least 1 | 0"),
        ({"batch_size": 1}, "batch_size | 2 | 1"),
        ({"learning_rate": 0.0}, "learning_rate | above 0 | 1e+30 | 0.0"),
        ({"learning_rate": float("inf")}, "learning_rate | 1e+30 | inf"),
        ({"learning_rate": float("nan")}, "learning_rate | 1e+30 | nan"),
        ({"schedule": "cosine"}, "schedule | one-cycle, steps | 'cosine'"),
        ({"milestones": (1,)}, "milestones | schedule | 'steps'"),
        ({"schedule": "steps", "milestones": (2, 1)}, "milestones | (2, 1)"),
        ({"schedule": "steps", "milestones": (8,)}, "milestones | number of epochs, 8 | (8,)"),
        ({"flip": "no"}, "flip | True | False | 'no'"),
        ({"momentum": 1.0}, "momentum | below 1 | 1.0"),
        ({"momentum": 0.0}, "nesterov | momentum | above 0"),
        ({"weight_decay": -1.0}, "weight_decay | at least 0"),
        ({"label_smoothing": 1.0}, "label_smoothing | below 1 | 1.0"),
        ({"largest_shift": 0.6}, "largest_shift | 0.5 | 0.6"),
        ({"choose": "first"}, "choose | last, best | 'first'"),
        ({"choose": "best"}, "choose='best' | held_out | 1"),
        ({"held_out": -1}, "held_out | at least 0 | -1"),
        ({"adversarial": "none-such"}, "adversarial"),
        ({"adversarial": "cw"}, "adversarial | 'cw'"),
        ({"colour": 1}, "colour | epochs"),
    ],
)
def test_invalid_values_are_rejected(changes: dict[str, Any], facts: str) -> None:
    with raises(SpecError, facts):
        recipe_from_preset("fast", **changes)


def test_unknown_preset_is_rejected() -> None:
    with raises(SpecError, "preset | fast, paper | 'slow'"):
        recipe_from_preset("slow")
