"""The package's public names, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import defensemble_training


def test_public_names() -> None:
    assert defensemble_training.__all__ == sorted(
        [
            *("ATTACKS", "PRESETS", "AttackPreset", "AveragedLogits", "AveragedProbabilities", "CheckpointError", "Compute", "DataError"),
            *("Dataset", "DivergedError", "Drop", "Examples", "ExamplesError", "Interrupted", "ModelSpec", "PaperPreset", "Part", "Recipe"),
            *("RedrawnMasks", "RunFolder", "SourceAttack", "SpecError", "Surrogate", "SurrogateRecord", "TrainingError"),
            *("TrainingProgress", "TrainingRecord", "UncheckedContentWarning", "adversarial_examples", "at_epsilon", "attack", "build"),
            *("check_writable", "craft", "defect_mask", "defect_masks", "defective", "find_cached_dataset", "is_first_process"),
            *("load_checkpoint", "load_dataset", "load_surrogates", "mask_digest", "paper_preset", "read_examples", "read_metadata"),
            *("recipe_from_preset", "round_to_8_bits", "save_checkpoint", "train", "train_module"),
        ]
    )
    for name in defensemble_training.__all__:
        value = getattr(defensemble_training, name)
        assert getattr(value, "__name__", name) == name


def test_specs_and_masks_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from defensemble_training import ModelSpec, defect_mask, mask_digest\n"
        "ModelSpec('resnet18', 0.3, (0, 1))\n"
        "mask_digest({'a.mask': defect_mask((1, 2, 3), 0.5, seed=1, name='a')})\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout == "False\n"
