"""Define, train, save and attack defective CNNs.

Names are imported on first use: masks and specs need only numpy, everything else needs torch.

Example:
    >>> from defensemble_training import ModelSpec, load_dataset, save_checkpoint, train
    >>> dataset = load_dataset("digits")
    >>> spec = ModelSpec("resnet18", keep=0.5, blocks=(0, 1, 2), width=8, input_shape=(1, 16, 16), mean=dataset.mean, std=dataset.std)
    >>> module, record = train(spec, dataset)
    >>> save_checkpoint("digits.safetensors", module, spec, record)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attacks.averages import AveragedLogits as AveragedLogits, AveragedProbabilities as AveragedProbabilities
    from .attacks.crafting import craft as craft
    from .attacks.examples import (
        Examples as Examples,
        SourceAttack as SourceAttack,
        SurrogateRecord as SurrogateRecord,
        read_examples as read_examples,
    )
    from .attacks.gradient import attack as attack
    from .attacks.presets import (
        ATTACKS as ATTACKS,
        AttackPreset as AttackPreset,
        PaperPreset as PaperPreset,
        at_epsilon as at_epsilon,
        paper_preset as paper_preset,
    )
    from .attacks.redrawn_masks import RedrawnMasks as RedrawnMasks
    from .attacks.surrogates import Surrogate as Surrogate, load_surrogates as load_surrogates
    from .attacks.transfer import adversarial_examples as adversarial_examples, round_to_8_bits as round_to_8_bits
    from .checkpoint import (
        check_writable as check_writable,
        load_checkpoint as load_checkpoint,
        read_metadata as read_metadata,
        save_checkpoint as save_checkpoint,
    )
    from .data.cached_dataset import find_cached_dataset as find_cached_dataset
    from .data.dataset import Dataset as Dataset, Part as Part, load_dataset as load_dataset
    from .errors import (
        CheckpointError as CheckpointError,
        DataError as DataError,
        DivergedError as DivergedError,
        ExamplesError as ExamplesError,
        Interrupted as Interrupted,
        SpecError as SpecError,
        TrainingError as TrainingError,
        UncheckedContentWarning as UncheckedContentWarning,
    )
    from .models.build import build as build
    from .models.defect import defect_masks as defect_masks
    from .models.masks import defect_mask as defect_mask, mask_digest as mask_digest
    from .models.spec import Drop as Drop, ModelSpec as ModelSpec
    from .models.wrapping import defective as defective
    from .record import TrainingRecord as TrainingRecord
    from .trainer.compute import Compute as Compute, is_first_process as is_first_process
    from .trainer.loop import TrainingProgress as TrainingProgress
    from .trainer.recipe import PRESETS as PRESETS, Recipe as Recipe, recipe_from_preset as recipe_from_preset
    from .trainer.run_state import RunFolder as RunFolder
    from .trainer.train import train as train, train_module as train_module

_MODULES = {
    "errors": (
        "CheckpointError",
        "DataError",
        "DivergedError",
        "ExamplesError",
        "Interrupted",
        "SpecError",
        "TrainingError",
        "UncheckedContentWarning",
    ),
    "attacks.averages": ("AveragedLogits", "AveragedProbabilities"),
    "attacks.presets": ("ATTACKS", "AttackPreset", "PaperPreset", "at_epsilon", "paper_preset"),
    "attacks.crafting": ("craft",),
    "attacks.examples": ("Examples", "SourceAttack", "SurrogateRecord", "read_examples"),
    "attacks.gradient": ("attack",),
    "attacks.redrawn_masks": ("RedrawnMasks",),
    "checkpoint": ("check_writable", "load_checkpoint", "read_metadata", "save_checkpoint"),
    "trainer.compute": ("Compute", "is_first_process"),
    "data.dataset": ("Dataset", "Part", "load_dataset"),
    "data.cached_dataset": ("find_cached_dataset",),
    "models.defect": ("defect_masks",),
    "trainer.loop": ("TrainingProgress",),
    "models.masks": ("defect_mask", "mask_digest"),
    "models.build": ("build",),
    "trainer.recipe": ("PRESETS", "Recipe", "recipe_from_preset"),
    "record": ("TrainingRecord",),
    "trainer.run_state": ("RunFolder",),
    "models.spec": ("Drop", "ModelSpec"),
    "trainer.train": ("train", "train_module"),
    "attacks.surrogates": ("Surrogate", "load_surrogates"),
    "attacks.transfer": ("adversarial_examples", "round_to_8_bits"),
    "models.wrapping": ("defective",),
}

__all__ = sorted(name for names in _MODULES.values() for name in names)


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
