"""What a defective CNN is, and how one is trained: specs, masks, networks, data, training, checkpoints.

Names are loaded on first use: masks and specs need numpy alone, the rest needs torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._errors import CheckpointError, DataError, SpecError, TrainingError
    from .attack_presets import ATTACKS, AttackPreset, gradient_queries
    from .attacks import AveragedLogits, attack, carlini_wagner, fgsm, mifgsm, pgd
    from .checkpoint import CheckpointMetadata, load_checkpoint, read_metadata, save_checkpoint
    from .data import Dataset, load_dataset
    from .defect import Defect, defect_masks
    from .masks import defect_mask, mask_digest
    from .networks import build
    from .record import TrainingRecord
    from .spec import ModelSpec
    from .training import TrainingProgress, train
    from .transfer import adversarial_examples, predicted, rounded_to_8_bits

__all__ = [
    "ATTACKS",
    "AttackPreset",
    "AveragedLogits",
    "CheckpointError",
    "CheckpointMetadata",
    "DataError",
    "Dataset",
    "Defect",
    "ModelSpec",
    "SpecError",
    "TrainingError",
    "TrainingProgress",
    "TrainingRecord",
    "adversarial_examples",
    "attack",
    "build",
    "carlini_wagner",
    "defect_mask",
    "defect_masks",
    "fgsm",
    "gradient_queries",
    "load_checkpoint",
    "load_dataset",
    "mask_digest",
    "mifgsm",
    "pgd",
    "predicted",
    "read_metadata",
    "rounded_to_8_bits",
    "save_checkpoint",
    "train",
]

_HOMES = {
    "_errors": ("CheckpointError", "DataError", "SpecError", "TrainingError"),
    "attack_presets": ("ATTACKS", "AttackPreset", "gradient_queries"),
    "attacks": ("AveragedLogits", "attack", "carlini_wagner", "fgsm", "mifgsm", "pgd"),
    "checkpoint": ("CheckpointMetadata", "load_checkpoint", "read_metadata", "save_checkpoint"),
    "data": ("Dataset", "load_dataset"),
    "defect": ("Defect", "defect_masks"),
    "masks": ("defect_mask", "mask_digest"),
    "networks": ("build",),
    "record": ("TrainingRecord",),
    "spec": ("ModelSpec",),
    "training": ("TrainingProgress", "train"),
    "transfer": ("adversarial_examples", "predicted", "rounded_to_8_bits"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
