"""What several tests need: a spec of a tiny network, and the record of a run that never was."""

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
        "data_source": "nowhere",
        "data_digest": "0123456789abcdef",
        "class_names": tuple(f"class {index}" for index in range(spec.num_classes)),
        "recipe": recipe_from_preset("fast").to_values(),
        "epochs": 0,
        "seed": 3,
        "processes": 1,
        "threads": 1,
        "precision": "fp32",
        "device": "none",
        "n_train": 0,
        "loss": 0.125,
        "n_held_out": 0,
        "held_out_accuracy": None,
        "accuracy": 0.75,
        "n_test": 4,
        "seconds": 1.5,
        "command": "",
        "versions": {"python": "3.11"},
    }
    return TrainingRecord(**{**values, **changes})
