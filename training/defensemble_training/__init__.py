"""What a defective CNN is, and how one is trained: specs, masks, networks, data, training, checkpoints, attacks.

Names are loaded on first use: masks and specs need numpy alone, the rest needs torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._errors import (
        CheckpointError,
        DataError,
        DivergedError,
        Interrupted,
        SpecError,
        TrainingError,
        UncheckedContentWarning,
    )
    from .attack_presets import ATTACKS, AttackPreset, gradient_queries
    from .attacks import AveragedLogits, attack, carlini_wagner, fgsm, mifgsm, pgd
    from .checkpoint import CheckpointMetadata, load_checkpoint, read_metadata, save_checkpoint
    from .compute import Compute
    from .data import Dataset, Part, held_out, load_dataset
    from .decoded_copy import decoded_dataset
    from .defect import Defect, defect_masks
    from .evaluation import predicted
    from .loop import TrainingProgress
    from .masks import defect_mask, mask_digest
    from .networks import build
    from .recipe import PRESETS, Recipe, recipe_from_preset
    from .record import TrainingRecord
    from .run_state import RunFolder
    from .spec import Drop, ModelSpec
    from .training import train, train_module
    from .transfer import adversarial_examples, rounded_to_8_bits
    from .wrapping import defective

__all__ = [
    "ATTACKS",
    "PRESETS",
    "AttackPreset",
    "AveragedLogits",
    "CheckpointError",
    "CheckpointMetadata",
    "Compute",
    "DataError",
    "Dataset",
    "Defect",
    "DivergedError",
    "Drop",
    "Interrupted",
    "ModelSpec",
    "Part",
    "Recipe",
    "RunFolder",
    "SpecError",
    "TrainingError",
    "TrainingProgress",
    "TrainingRecord",
    "UncheckedContentWarning",
    "adversarial_examples",
    "attack",
    "build",
    "carlini_wagner",
    "decoded_dataset",
    "defect_mask",
    "defect_masks",
    "defective",
    "fgsm",
    "gradient_queries",
    "held_out",
    "load_checkpoint",
    "load_dataset",
    "mask_digest",
    "mifgsm",
    "pgd",
    "predicted",
    "read_metadata",
    "recipe_from_preset",
    "rounded_to_8_bits",
    "save_checkpoint",
    "train",
    "train_module",
]

_HOMES = {
    "_errors": ("CheckpointError", "DataError", "DivergedError", "Interrupted", "SpecError", "TrainingError", "UncheckedContentWarning"),
    "attack_presets": ("ATTACKS", "AttackPreset", "gradient_queries"),
    "attacks": ("AveragedLogits", "attack", "carlini_wagner", "fgsm", "mifgsm", "pgd"),
    "checkpoint": ("CheckpointMetadata", "load_checkpoint", "read_metadata", "save_checkpoint"),
    "compute": ("Compute",),
    "data": ("Dataset", "Part", "held_out", "load_dataset"),
    "decoded_copy": ("decoded_dataset",),
    "defect": ("Defect", "defect_masks"),
    "evaluation": ("predicted",),
    "loop": ("TrainingProgress",),
    "masks": ("defect_mask", "mask_digest"),
    "networks": ("build",),
    "recipe": ("PRESETS", "Recipe", "recipe_from_preset"),
    "record": ("TrainingRecord",),
    "run_state": ("RunFolder",),
    "spec": ("Drop", "ModelSpec"),
    "training": ("train", "train_module"),
    "transfer": ("adversarial_examples", "rounded_to_8_bits"),
    "wrapping": ("defective",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
