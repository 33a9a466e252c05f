"""What several tests need: a spec of a tiny network, and the record of a run that never was."""

from __future__ import annotations

from typing import Any

from defensemble_training import ModelSpec, TrainingRecord, recipe_from_preset


def tiny_spec(**changes: Any) -> ModelSpec:
    values: dict[str, Any] = {
        "arch": "resnet18",
        "keep": 0.3,
        "blocks": (0, 1, 2),
        "width": 2,
        "mean": (0.5,),
        "std": (0.25,),
        "num_classes": 3,
        "input_shape": (1, 8, 8),
    }
    return ModelSpec(**{**values, **changes})


def record_of(spec: ModelSpec, **changes: Any) -> TrainingRecord:
    values: dict[str, Any] = {
        "data": "none",
        "recipe": recipe_from_preset("fast").to_values(),
        "seed": 3,
        "loss": 0.125,
        "accuracy": 0.75,
        "n_test": 4,
        "seconds": 1.5,
        "versions": {"python": "3.11"},
    }
    class_names = tuple(f"class {index}" for index in range(spec.num_classes))
    return TrainingRecord.untrained(**{"class_names": class_names, **values, **changes})
