"""Export checkpoints and ONNX files into a model repository. Each network is verified first; all files are written in one transaction."""

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

from .entries.members import DEFAULT_MAX_BATCH_SIZE, ExportedMember, check_members_fit, check_request, check_same_interface, planned_files
from .errors import ExportError
from .foreign.reader import check_is_checkpoint
from .fused import check_fuse_request, fuse_planned_ensemble, fused_member, planned_fused_files
from .members.from_checkpoint import member_from_onnx, onnx_from_checkpoint
from .members.from_onnx import OnnxSource
from .members.mask_aware import form_problems
from .members.write import ExportOptions
from .verification.images import dataset_from_record, images_for_verification


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint to export.

    Args:
        path: The checkpoint (.safetensors).
        name: The name of the member. None: the name of the file without its suffix.

    Example:
        >>> export_networks([CheckpointSource(Path("vgg19.safetensors"), "vgg")], Path("model_repository"))
    """

    path: Path
    name: str | None = None

    @property
    def member_name(self) -> str:
        """The name of the member."""
        return self.path.stem if self.name is None else self.name

    def check(self, options: ExportOptions, images: np.ndarray[Any, Any] | None) -> None:
        """Check that the checkpoint can be read, before any slow work.

        Raises:
            ExportError: The file is ONNX or belongs to another framework, or the network has no masks and its mask-aware form is required.
            defensemble_training.CheckpointError: The checkpoint cannot be read.
        """
        check_is_checkpoint(self.path)
        from defensemble_training import defect_masks, load_checkpoint

        module, _, _ = load_checkpoint(self.path)
        if options.mask_aware == "on" and not defect_masks(module):
            raise ExportError(f"{self.path} has no masks, so it has no mask-aware form: leave --mask-aware out, or export a masked network")

    def real_images(self, data_dir: Path | None) -> np.ndarray[Any, Any]:
        """Return test images (N,C,H,W) of the dataset that the checkpoint was trained on.

        Raises:
            ExportError: The dataset is not found.
        """
        from defensemble_training import read_metadata

        metadata = read_metadata(self.path)
        return images_for_verification(dataset_from_record(metadata.record, metadata.spec.input_shape, data_dir)).images

    def describe_member(self) -> ExportedMember:
        """Return the member to export, without its graph: input shape, class names and preprocessing."""
        from defensemble_training import read_metadata

        metadata = read_metadata(self.path)
        names, rule = metadata.record.class_names, metadata.record.preprocessing
        preprocessing = None if rule is None else Preprocessing.from_values(rule, str(self.path))
        return ExportedMember(self.member_name, b"", metadata.spec.input_shape, len(names), names, None, preprocessing=preprocessing)

    def write_onnx(self, path: Path, *, data_dir: Path | None, **settings: Any) -> None:
        """Export and verify the checkpoint with `onnx_from_checkpoint`."""
        onnx_from_checkpoint(self.path, path, data_dir=data_dir, **settings)


def export_checkpoints(checkpoints: Sequence[Path], repository: Path, **settings: Any) -> list[str]:
    """Export checkpoints as members that are named after their files.

    Args:
        checkpoints: Checkpoints (.safetensors).
        repository: The model repository. It is created if it does not exist.
        **settings: See `export_networks`.

    Raises:
        ExportError: There is no checkpoint; see also `export_networks`.

    Example:
        >>> export_checkpoints([Path("a.safetensors"), Path("b.safetensors")], Path("model_repository"), ensemble="digits")
    """
    if not checkpoints:
        raise ExportError("got no checkpoint, expected at least one .safetensors file: name the checkpoints to export")
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
    options: ExportOptions | None = None,
    images: np.ndarray[Any, Any] | None = None,
    data_dir: Path | None = None,
    fuse: str | None = None,
    on_exported: Callable[[Path, ExportedMember], None] = lambda path, member: None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Export networks as members of a model repository and of an ensemble.

    Nothing is written until every network is exported and verified (see `onnx_from_checkpoint`), each up to the largest batch that its
    configuration allows. Files that a killed export left next to the repository are removed.

    Args:
        networks: The checkpoints and ONNX files to export.
        repository: The model repository. It is created if it does not exist.
        ensemble: The ensemble that gets the members. None: no ensemble.
        average: What the ensemble averages, "probabilities" or "logits".
        weights: Weights by member name.
        max_batch_size: Largest batch of the models, 1 to 4096. None: that of the existing models, or the default.
        replace: Add a new version to each model that exists.
        options: Precision, calibration and form.
        images: Float32 (N,C,H,W) in [0, 1] to verify on. None: test images of the dataset of each checkpoint.
        data_dir: Folder of that dataset.
        fuse: Name of a model that computes the whole ensemble in one graph. If `ensemble` is None, the networks are written only into
            this graph, with `weights` and `average`, and do not become members.
        on_exported: Called with the source and the member after each export.
        on_progress: Called with a line about each leftover that is removed, and each network whose mask-aware form could not be verified.

    Returns:
        The paths written, relative to `repository`.

    Raises:
        ExportError: The request is not valid, or a network cannot be exported. The repository is unchanged after every error.
        defensemble_training.CheckpointError: A checkpoint cannot be read.
        OSError: A file cannot be read or written.
    """
    if repository.exists() and not repository.is_dir():
        raise ExportError(f"model repository {repository} is a file, expected a folder: name a folder (--repository FOLDER)")
    options = ExportOptions() if options is None else options
    names = [network.member_name for network in networks]
    fused_ensemble = batch = None
    if fuse is not None:
        taken = [*names, *([] if ensemble is None else [ensemble])]
        batch = check_fuse_request(repository, fuse, taken, max_batch_size=max_batch_size, replace=replace)
    if fuse is not None and ensemble is None:
        fused_ensemble = Ensemble(fuse, tuple(map(Member, names))).extended({}, weights or {}, average)
        batches = dict.fromkeys(names, batch or DEFAULT_MAX_BATCH_SIZE)
    else:
        batches = check_request(
            repository, names, ensemble, average=average, weights=weights or {}, max_batch_size=max_batch_size, replace=replace
        )
    require_valid_configs(RepositoryView(repository), [name for name in batches if (repository / name).exists()])
    check_writable(repository)
    for network in networks:
        network.check(options, images)
    descriptions = [network.describe_member() for network in networks]
    for description in descriptions if fused_ensemble is None else ():
        if (repository / description.name).exists():
            check_same_interface(repository / description.name, description)
    if ensemble is not None or fuse is not None:
        check_members_fit(repository, ensemble, descriptions)
    members: list[ExportedMember] = []
    with tempfile.TemporaryDirectory(prefix="defensemble-export-") as folder:
        for number, network in enumerate(networks):
            path = Path(folder) / f"{number}.onnx"
            network.write_onnx(path, max_batch_size=batches[network.member_name], options=options, images=images, data_dir=data_dir)
            members.append(member_from_onnx(path, network.member_name))
            on_exported(network.path, members[-1])
    real = images
    if fuse is not None and real is None:
        real = next((network.real_images(data_dir) for network in networks if isinstance(network, CheckpointSource)), None)
    fused = None
    if fused_ensemble is not None:
        fused = fused_member(fused_ensemble.name, fused_ensemble, members, real, max_batch_size=batches[names[0]])
    with locked(repository):
        for stale in remove_stale_staging(repository):
            on_progress(f"removed {stale}, left by an export that was killed")
        if fused is not None and fused_ensemble is not None:
            files = planned_fused_files(repository, fused, fused_ensemble, max_batch_size=batches[names[0]], replace=replace)
        else:
            files = planned_files(
                repository, members, ensemble=ensemble, average=average, weights=weights, max_batch_size=max_batch_size, replace=replace
            )
            if fuse is not None and ensemble is not None:
                files |= fuse_planned_ensemble(
                    repository, ensemble, fuse, files, images=real, max_batch_size=max_batch_size, replace=replace
                )
        for problem in form_problems(files):
            on_progress(problem)
        write_files(repository, files)
    return list(files)
