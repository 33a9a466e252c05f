"""Recipes: the presets say what the paper says, values are checked, and the learning rate does what its schedule says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from defensemble_training import PRESETS, Recipe, SpecError, recipe_from_preset
from defensemble_training.trainer.recipe import one_cycle


def test_paper_is_the_authors_recipe() -> None:
    paper = PRESETS["paper"]
    assert (paper.learning_rate, paper.momentum, paper.nesterov, paper.weight_decay) == (0.1, 0.9, False, 5e-4)
    assert (paper.epochs, paper.batch_size, paper.milestones, paper.label_smoothing) == (350, 128, (150, 250), 0.0)
    assert round(32 * paper.largest_shift) == 4
    assert paper.flip
    per_epoch = 391
    rates = [paper.learning_rate_at(epoch * per_epoch, per_epoch) for epoch in (0, 149, 150, 249, 250, 349)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert paper.learning_rate_at(150 * per_epoch - 1, per_epoch) == pytest.approx(0.1)


def test_milestones_move_with_the_epochs_and_leave_with_the_schedule() -> None:
    assert recipe_from_preset("paper", epochs=35).milestones == (15, 25)
    assert recipe_from_preset("paper", epochs=35, milestones=(1, 2)).milestones == (1, 2)
    assert recipe_from_preset("paper", schedule="one-cycle").milestones == ()
    assert recipe_from_preset("paper", epochs=1).milestones == ()


def test_numbers_of_numpy_become_python_s() -> None:
    recipe = recipe_from_preset("fast", epochs=np.int64(3), learning_rate=np.float32(0.5))
    assert json.loads(json.dumps(recipe.to_values()))["epochs"] == 3
    assert type(recipe.learning_rate) is float


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_recipe_survives_json(preset: str) -> None:
    recipe = recipe_from_preset(preset, label_smoothing=0.1, choose="best", held_out=5)
    assert Recipe.from_values(json.loads(json.dumps(recipe.to_values()))) == recipe
    with pytest.raises(SpecError, match="a recipe must have the keys epochs, "):
        Recipe.from_values({"epochs": 3})


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 184])
def test_one_cycle_rises_then_falls(steps: int) -> None:
    factors = [one_cycle(step, steps) for step in range(steps)]
    highest = factors.index(1.0)
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: highest + 1] == sorted(factors[: highest + 1])
    assert factors[highest:] == sorted(factors[highest:], reverse=True)
    assert highest == -(-steps // 4) - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be an integer of at least 2, got 1"),
        ({"learning_rate": 0.0}, r"learning_rate must be above 0 and at most 1e\+30, got 0.0"),
        ({"learning_rate": float("inf")}, r"learning_rate must be above 0 and at most 1e\+30, got inf"),
        ({"learning_rate": float("nan")}, r"learning_rate must be above 0 and at most 1e\+30, got nan"),
        ({"schedule": "cosine"}, "schedule must be one of one-cycle, steps; got 'cosine'"),
        ({"milestones": (1,)}, "milestones belong to the schedule 'steps'"),
        ({"schedule": "steps", "milestones": (2, 1)}, "milestones must rise, got"),
        ({"schedule": "steps", "milestones": (8,)}, r"milestones must lie below the 8 epochs, got \(8,\)"),
        ({"flip": "no"}, "flip must be True or False, got 'no'"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        ({"momentum": 0.0}, "nesterov needs a momentum above 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, got 1.0"),
        ({"largest_shift": 0.6}, "largest_shift must be at least 0 and at most 0.5, got 0.6"),
        ({"choose": "first"}, "choose must be one of last, best; got 'first'"),
        ({"choose": "best"}, "choose='best' needs held_out of at least 1"),
        ({"held_out": -1}, "held_out must be an integer of at least 0, got -1"),
        ({"adversarial": "none-such"}, "adversarial must be one of "),
        ({"adversarial": "cw"}, "adversarial must be one of .*; got 'cw'"),
        ({"colour": 1}, "a recipe has no colour; it has epochs, "),
    ],
)
def test_bad_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        recipe_from_preset("fast", **changes)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(SpecError, match="preset must be one of fast, paper; got 'slow'"):
        recipe_from_preset("slow")
