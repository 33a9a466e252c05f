"""From checkpoints to entries in a model repository: each exported and verified first, all written at once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ._errors import ExportError
from .member import member_from_onnx, onnx_from_checkpoint
from .plan import check_request, repository_plan
from .writing import check_writable, locked, remove_stale_staging, write_plan


def export_checkpoints(
    checkpoints: Sequence[Path],
    repository: Path,
    *,
    ensemble: str | None = "ensemble",
    average: str | None = None,
    weights: Mapping[str, float] | None = None,
    max_batch_size: int | None = None,
    replace: bool = False,
    images: np.ndarray[Any, Any] | None = None,
    data_dir: Path | None = None,
    on_exported: Callable[[Path], None] = lambda checkpoint: None,
    say: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Export ``checkpoints`` as members named after their files and, unless ``ensemble`` is None, into an ensemble (``repository_plan``).

    Returns the paths written, relative to ``repository``. Nothing is written unless every checkpoint was exported and verified, each at the
    largest batch that its configuration will allow, on ``images`` or the test images of its data (``onnx_from_checkpoint``). What an export
    that was killed had left beside the repository is removed; ``say`` is told.

    Raises:
        ExportError, defensemble_training.CheckpointError, OSError: the repository is as it was.
    """
    if not checkpoints:
        raise ExportError("no checkpoint is given: name at least one .safetensors file")
    if repository.exists() and not repository.is_dir():
        raise ExportError(f"{repository} is a file: name a folder for the model repository")
    names = [checkpoint.stem for checkpoint in checkpoints]
    batches = check_request(
        repository, names, ensemble, average=average, weights=weights or {}, max_batch_size=max_batch_size, replace=replace
    )
    check_writable(repository)
    from defensemble_training import load_checkpoint

    for checkpoint in checkpoints:
        load_checkpoint(checkpoint)  # an export takes seconds: a checkpoint that cannot be read is found before the first
    members = []
    with tempfile.TemporaryDirectory(prefix="defensemble-export-") as folder:
        for number, checkpoint in enumerate(checkpoints):
            path = Path(folder) / f"{number}.onnx"
            onnx_from_checkpoint(checkpoint, path, max_batch_size=batches[checkpoint.stem], images=images, data_dir=data_dir)
            members.append(member_from_onnx(path, checkpoint.stem))
            on_exported(checkpoint)
    with locked(repository):
        for stale in remove_stale_staging(repository):
            say(f"removed {stale}, which an export that was killed had left")
        plan = repository_plan(
            repository, members, ensemble=ensemble, average=average, weights=weights, max_batch_size=max_batch_size, replace=replace
        )
        write_plan(repository, plan)
    return list(plan)
