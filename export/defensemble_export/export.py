"""From checkpoints, and from other people's ONNX files, to entries in a model repository: each verified first, all written at once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from defensemble_images import Preprocessing
from defensemble_repository.checks.model import require_valid_configs
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.lock import locked
from defensemble_repository.transaction import check_writable, remove_stale_staging, write_files
from defensemble_repository.view import RepositoryView

from .entries.members import DEFAULT_MAX_BATCH_SIZE, ExportedMember, check_members_fit, check_request, check_same_interface, repository_plan
from .errors import ExportError
from .foreign.reader import check_is_checkpoint
from .fused import check_fuse_request, fuse_planned, fused_member, fused_plan
from .members.from_checkpoint import member_from_onnx, onnx_from_checkpoint
from .members.from_onnx import OnnxSource
from .members.write import Form
from .verification.images import dataset_of, images_for_verification


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint to be exported as the member ``name``; None: named after the file."""

    path: Path
    name: str | None = None

    @property
    def member_name(self) -> str:
        """The member's name."""
        return self.path.stem if self.name is None else self.name

    def check(self, form: Form, images: np.ndarray[Any, Any] | None) -> None:
        """Find out before any slow work whether it can be read.

        Raises:
            ExportError, defensemble_training.CheckpointError: it cannot.
        """
        check_is_checkpoint(self.path)
        from defensemble_training import load_checkpoint

        load_checkpoint(self.path)

    def real_images(self, data_dir: Path | None) -> np.ndarray[Any, Any]:
        """Test images (N,C,H,W) of the data that it was trained on.

        Raises:
            ExportError: they are not there.
        """
        from defensemble_training import read_metadata

        known = read_metadata(self.path)
        return images_for_verification(dataset_of(known.record, known.spec.input_shape, data_dir)).images

    def outline(self) -> ExportedMember:
        """The member that it will be, without its graph: what it takes, and which classes it knows."""
        from defensemble_training import read_metadata

        known = read_metadata(self.path)
        names, rule = known.record.class_names, known.record.preprocessing
        preprocessing = None if rule is None else Preprocessing.from_values(rule, str(self.path))
        return ExportedMember(self.member_name, b"", known.spec.input_shape, len(names), names, None, preprocessing=preprocessing)

    def write_onnx(self, path: Path, *, data_dir: Path | None, **settings: Any) -> None:
        """Export and verify it: ``onnx_from_checkpoint``."""
        onnx_from_checkpoint(self.path, path, data_dir=data_dir, **settings)


def export_checkpoints(checkpoints: Sequence[Path], repository: Path, **settings: Any) -> list[str]:
    """Export ``checkpoints`` as members named after their files: ``export_networks``."""
    if not checkpoints:
        raise ExportError("no checkpoint is given: name at least one .safetensors file")
    return export_networks([CheckpointSource(checkpoint) for checkpoint in checkpoints], repository, **settings)


def export_networks(
    networks: Sequence[CheckpointSource | OnnxSource],
    repository: Path,
    *,
    ensemble: str | None = "ensemble",
    average: str | None = None,
    weights: Mapping[str, float] | None = None,
    max_batch_size: int | None = None,
    replace: bool = False,
    form: Form | None = None,
    images: np.ndarray[Any, Any] | None = None,
    data_dir: Path | None = None,
    fuse: str | None = None,
    on_exported: Callable[[Path, ExportedMember], None] = lambda path, member: None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Export ``networks`` as members in ``form`` and, unless ``ensemble`` is None, into an ensemble (``repository_plan``).

    ``fuse`` names a graph of the whole ensemble, written beside it; where ``ensemble`` is None the networks go into that graph alone, with
    ``weights`` and ``average``, and are no members of the repository.

    Returns the paths written, relative to ``repository``. Nothing is written unless every network was exported and verified, each at the
    largest batch that its configuration will allow, on ``images`` or the test images of its data (``onnx_from_checkpoint``). What an export
    that was killed had left next to the repository is removed; ``on_progress`` gets a line about it.

    Raises:
        ExportError, defensemble_training.CheckpointError, OSError: the repository is as it was.
    """
    if repository.exists() and not repository.is_dir():
        raise ExportError(f"{repository} is a file: name a folder for the model repository")
    form = Form() if form is None else form
    names = [network.member_name for network in networks]
    alone = batch = None
    if fuse is not None:
        taken = [*names, *([] if ensemble is None else [ensemble])]
        batch = check_fuse_request(repository, fuse, taken, max_batch_size=max_batch_size, replace=replace)
    if fuse is not None and ensemble is None:
        alone = Ensemble(fuse, tuple(map(Member, names))).extended({}, weights or {}, average)
        batches = dict.fromkeys(names, batch or DEFAULT_MAX_BATCH_SIZE)
    else:
        batches = check_request(
            repository, names, ensemble, average=average, weights=weights or {}, max_batch_size=max_batch_size, replace=replace
        )
    require_valid_configs(RepositoryView(repository), [name for name in batches if (repository / name).exists()])
    check_writable(repository)
    for network in networks:
        network.check(form, images)
    outlines = [network.outline() for network in networks]
    for outline in outlines if alone is None else ():
        if (repository / outline.name).exists():
            check_same_interface(repository / outline.name, outline)
    if ensemble is not None or fuse is not None:
        check_members_fit(repository, ensemble, outlines)
    members: list[ExportedMember] = []
    with tempfile.TemporaryDirectory(prefix="defensemble-export-") as folder:
        for number, network in enumerate(networks):
            path = Path(folder) / f"{number}.onnx"
            network.write_onnx(path, max_batch_size=batches[network.member_name], form=form, images=images, data_dir=data_dir)
            members.append(member_from_onnx(path, network.member_name))
            on_exported(network.path, members[-1])
    real = images
    if fuse is not None and real is None:
        real = next((network.real_images(data_dir) for network in networks if isinstance(network, CheckpointSource)), None)
    fused = None if alone is None else fused_member(alone.name, alone, members, real, max_batch_size=batches[names[0]])
    with locked(repository):
        for stale in remove_stale_staging(repository):
            on_progress(f"removed {stale}, which an export that was killed had left")
        if fused is not None and alone is not None:
            plan = fused_plan(repository, fused, alone, max_batch_size=batches[names[0]], replace=replace)
        else:
            plan = repository_plan(
                repository, members, ensemble=ensemble, average=average, weights=weights, max_batch_size=max_batch_size, replace=replace
            )
            if fuse is not None and ensemble is not None:
                plan |= fuse_planned(repository, ensemble, fuse, plan, images=real, max_batch_size=max_batch_size, replace=replace)
        write_files(repository, plan)
    return list(plan)
