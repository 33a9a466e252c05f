"""The package's public names, and what importing it costs."""

import subprocess
import sys

import defensemble_training


def test_public_names() -> None:
    assert defensemble_training.__all__ == [
        *("CheckpointError", "CheckpointMetadata", "DataError", "Dataset", "Defect", "Drop", "ModelSpec", "SpecError", "TrainingError"),
        *("TrainingProgress", "TrainingRecord", "build", "defect_mask", "defect_masks", "defective", "load_checkpoint", "load_dataset"),
        *("mask_digest", "read_metadata", "save_checkpoint", "train"),
    ]
    for name in defensemble_training.__all__:
        assert getattr(defensemble_training, name).__name__ == name


def test_specs_and_masks_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from defensemble_training import ModelSpec, defect_mask, mask_digest\n"
        "ModelSpec('resnet18', 0.3, (0, 1))\n"
        "mask_digest({'a.mask': defect_mask((1, 2, 3), 0.5, seed=1, name='a')})\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout == "False\n"
