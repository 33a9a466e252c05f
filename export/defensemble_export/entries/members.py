"""The files that an export adds to a model repository, as paths and bytes, before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from defensemble_images import ImagesError, Preprocessing
from defensemble_repository.configs import Interface, describe_version, member_config
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.errors import EnsembleError
from defensemble_repository.labels import class_names_from_labels
from defensemble_repository.names import CONFIG_FILE, LABELS_FILE, MODEL_FILE, REPORT_FILE, check_name
from defensemble_repository.pbtxt import config_from_file, pbtxt_from_config, schema
from defensemble_repository.preprocessing import PREPROCESSING, common_preprocessing
from defensemble_repository.profile_digest import update_digest
from defensemble_repository.reader import (
    checked_batch_size,
    config_paths,
    is_ensemble,
    next_version,
    parameter,
    read_config,
    read_ensemble,
    read_interface,
    read_max_batch_size,
)
from defensemble_repository.view import RepositoryView

from ..errors import ExistsError, ExportError
from ..labels import checked_class_names, first_difference
from .ensemble import ensemble_files

DEFAULT_MAX_BATCH_SIZE = 64


@dataclass(frozen=True)
class ExportedMember:
    """One exported network.

    Attributes:
        name: The model's name.
        onnx: The bytes of the ONNX file.
        input_shape: (C, H, W) of the images.
        num_classes: The number of classes.
        class_names: The class names.
        mask_digest: The digest of the masks; None for an imported network, whose masks are unknown.
        precision: What the graph computes in: fp32, fp16 or int8.
        report: The verification report as JSON, if there is one.
        preprocessing: How images are resized; None if unknown.
        mask_aware: The operator of a mask-aware file, such as `"MaskedNetwork_v1"`; None for a plain one.

    Example:
        >>> member = member_from_onnx("vgg19.onnx", "vgg")
        >>> member.precision, member.input_shape, member.class_names
    """

    name: str
    onnx: bytes
    input_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]
    mask_digest: str | None
    precision: str = "fp32"
    report: bytes | None = None
    preprocessing: Preprocessing | None = None
    mask_aware: str | None = None

    def interface(self, max_batch_size: int) -> Interface:
        """Return its inputs and outputs for batches of up to `max_batch_size` images."""
        return Interface(self.input_shape, self.num_classes, max_batch_size)

    @property
    def rule(self) -> str | None:
        """The parameter `preprocessing` of its configuration."""
        return None if self.preprocessing is None else self.preprocessing.to_json()

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(self.class_names) != self.num_classes:
            raise ExportError(f"'{self.name}' has {self.num_classes} classes, but {len(self.class_names)} class names")
        object.__setattr__(self, "class_names", checked_class_names(self.class_names, f"the class names of '{self.name}'"))


def planned_files(
    repository: Path,
    members: Sequence[ExportedMember],
    *,
    ensemble: str | None = "ensemble",
    average: str | None = None,
    weights: Mapping[str, float] | None = None,
    max_batch_size: int | None = None,
    replace: bool = False,
) -> dict[str, bytes]:
    """Compute the files that add exported networks, and an ensemble of them, to a repository.

    The order of the paths makes every intermediate state servable: a member's configuration comes before the version that it describes, the
    ensemble's comes last. An existing member gets a new version, never new bytes for an old one, and keeps the hand edits of its
    configuration. An existing ensemble keeps its other members, its weights, average and hand edits.

    Args:
        repository: The repository.
        members: The exported networks. Existing members of the ensemble move to their new versions, new ones are added with weight 1.
        ensemble: The ensemble's name; None for no ensemble.
        average: `"probabilities"` or `"logits"`; None for that of the existing ensemble, else `"probabilities"`.
        weights: New weights, by model.
        max_batch_size: The largest batch; None for that of the existing configuration, else 64.
        replace: Whether members and the ensemble may exist already.

    Returns:
        The files by path relative to the repository, in the order in which to write them.

    Raises:
        ExistsError: A member or the ensemble exists already, and `replace` is False.
        EnsembleError: The members cannot be averaged, a name or weight is not valid, or the existing ensemble was not exported.
        ConfigError: A configuration in the repository cannot be read.
        ExportError: `max_batch_size` is out of range, or differs from an existing configuration.

    Example:
        >>> write_files(repository, planned_files(repository, [member], weights={"keep0.3": 2.0}))
    """
    names, weights = [member.name for member in members], weights or {}
    batches = check_request(repository, names, ensemble, average=average, weights=weights, max_batch_size=max_batch_size, replace=replace)
    files: dict[str, bytes] = {}
    for member in members:
        files |= _member_files(repository, member, batches[member.name])
    if ensemble is not None:
        planned = _planned_ensemble(repository, list(batches), ensemble, average, weights)
        files |= _ensemble_files(RepositoryView(repository, files), planned, members, batches)
    return changed_files(repository, files)


def check_request(
    repository: Path,
    members: Sequence[str],
    ensemble: str | None,
    *,
    average: str | None,
    weights: Mapping[str, float],
    max_batch_size: int | None,
    replace: bool,
) -> dict[str, int]:
    """Check the arguments of `planned_files` before any slow work; the arguments and errors are the same.

    Returns:
        The largest batch of each member.
    """
    if max_batch_size is not None:
        checked_batch_size(max_batch_size, "max_batch_size")
    duplicates = sorted({name for name in members if members.count(name) > 1})
    if duplicates:
        raise EnsembleError(f"{', '.join(duplicates)}: given twice; members are named after their files, so rename one")
    _check_free(repository, members, ensemble, replace=replace)
    default = DEFAULT_MAX_BATCH_SIZE if max_batch_size is None else max_batch_size
    if ensemble is not None:
        _planned_ensemble(repository, members, ensemble, average, weights)
        if (repository / ensemble).exists():
            # A new member must not reduce the batch of an existing ensemble.
            default = max(default, read_max_batch_size(repository / ensemble, max_batch_size))
    return {name: read_max_batch_size(repository / name, max_batch_size) if (repository / name).exists() else default for name in members}


def _planned_ensemble(repository: Path, members: Sequence[str], name: str, average: str | None, weights: Mapping[str, float]) -> Ensemble:
    """Return the new ensemble: the existing one with `members` at their next versions, or one of only these."""
    versions = {member: next_version(repository / member) for member in members}
    if (repository / name).exists():
        current = read_ensemble(repository, name)
    else:
        current = Ensemble(name, tuple(Member(member, version) for member, version in versions.items()))
    planned = current.extended(versions, weights, average)
    missing = [member.model for member in planned.members if member.model not in versions and not (repository / member.model).exists()]
    if missing:
        raise EnsembleError(
            f"{', '.join(missing)}: members of '{name}', but missing in {repository}; restore them, or choose another --ensemble name"
        )
    return planned


def _check_free(repository: Path, members: Sequence[str], ensemble: str | None, *, replace: bool) -> None:
    for name in members:
        check_name(name)
        if (repository / name).exists():
            if is_ensemble(read_config(repository / name)):
                raise ExistsError(f"{repository / name} is an ensemble and cannot become a member; choose another name (--name NAME)")
            if not replace:
                raise ExistsError(
                    f"{repository / name} exists already; choose another name (--name NAME, or another file name), or pass --replace to "
                    "add a new version and keep the old one"
                )
    if ensemble is None:
        return
    check_name(ensemble)
    if (repository / ensemble).exists():
        if not is_ensemble(read_config(repository / ensemble)):
            raise ExistsError(f"{repository / ensemble} is not an ensemble; choose another --ensemble name")
        if not replace:
            raise ExistsError(
                f"ensemble {repository / ensemble} exists already; choose another --ensemble name, or pass --replace to add these members "
                "and keep the others"
            )


def _member_files(repository: Path, member: ExportedMember, max_batch_size: int) -> dict[str, bytes]:
    folder = repository / member.name
    if not folder.exists():
        config = member_config(member.name, member.interface(max_batch_size))
        describe_member_version(config, member, 1)
        labels = {f"{member.name}/{LABELS_FILE}": labels_text(member)}
        return {**version_files(member, 1), **labels, f"{member.name}/{CONFIG_FILE}": pbtxt_from_config(config)}
    check_same_interface(folder, member)
    version = next_version(folder)
    files = {}
    for path in config_paths(folder):
        before, config = config_from_file(path), config_from_file(path)
        describe_member_version(config, member, version)
        update_digest(before, config)
        files[path.relative_to(repository).as_posix()] = pbtxt_from_config(config)
    return files | version_files(member, version)


def describe_member_version(config: schema.ModelConfig, member: ExportedMember, version: int) -> None:
    """Describe a version of a member or a fused graph in its configuration.

    Args:
        config: The configuration, which is changed.
        member: The content of the version.
        version: The version.
    """
    describe_version(
        config,
        version,
        precision=member.precision,
        sha256=hashlib.sha256(member.onnx).hexdigest(),
        mask_digest=member.mask_digest,
        preprocessing=member.rule,
        mask_aware=member.mask_aware,
    )


def version_files(member: ExportedMember, version: int) -> dict[str, bytes]:
    """Return the files of a version of a model: its graph and, if there is one, its verification report."""
    report = {} if member.report is None else {f"{member.name}/{version}/{REPORT_FILE}": member.report}
    return {f"{member.name}/{version}/{MODEL_FILE}": member.onnx, **report}


def labels_text(member: ExportedMember) -> bytes:
    """Return the class names as Triton reads them, one per line."""
    return "".join(f"{label}\n" for label in member.class_names).encode()


def check_same_interface(folder: Path, member: ExportedMember) -> None:
    """Check that `member` can be a new version of the model in `folder`.

    Raises:
        ExistsError: The inputs, outputs or class names differ.
        EnsembleError: The preprocessing rules differ.
    """
    shapes, labels = read_interface(folder)
    expected = [list(member.input_shape), [member.num_classes]]
    if shapes != expected:
        raise ExistsError(f"{folder} has inputs and outputs {shapes}, but the new version has {expected}; export it under another name")
    if labels is not None and class_names_from_labels(labels) != member.class_names:
        raise ExistsError(f"the class names in {folder / LABELS_FILE} differ from those of the new version; export it under another name")
    common_preprocessing(
        {member.name: parameter(read_config(folder), PREPROCESSING), f"{member.name}@{next_version(folder)}": member.rule},
        "export the new version under another name. If a stated rule is wrong, correct the parameter in "
        f"{folder / CONFIG_FILE}, or import the ONNX file with another --resize",
    )


def preprocessing_from_text(text: str | None, where: str) -> Preprocessing | None:
    """Parse the preprocessing rule of an ONNX file's metadata or a configuration's parameter; return None for None.

    Args:
        text: The rule as JSON.
        where: What error messages call it.

    Raises:
        ExportError: The text is not a valid rule.
    """
    try:
        return None if text is None else Preprocessing.from_json(text, where)
    except ImagesError as error:
        raise ExportError(str(error)) from error


def check_same(members: Sequence[ExportedMember], *, shape: str = "input shape") -> None:
    """Check that members have the same images, preprocessing and classes.

    Args:
        members: The members.
        shape: What error messages call the size of the images.

    Raises:
        EnsembleError: The members differ.
    """
    first = members[0]
    for member in members[1:]:
        fix = "average only networks that agree, and export the others into another ensemble (--ensemble NAME)"
        if member.input_shape != first.input_shape:
            difference = f"'{first.name}' has {first.input_shape} and '{member.name}' has {member.input_shape}"
            raise EnsembleError(f"members must share their {shape}, but {difference}; {fix}")
        if member.class_names != first.class_names:
            difference = f"'{first.name}' and '{member.name}' have {first_difference(first.class_names, member.class_names)}"
            raise EnsembleError(f"members must share their class names, but {difference}; {fix}")
    common_preprocessing({member.name: member.rule for member in members})


def check_members_fit(repository: Path, ensemble: str | None, members: Sequence[ExportedMember]) -> None:
    """Check that exported networks can be averaged with each other and with the existing members of an ensemble.

    Args:
        repository: The repository.
        ensemble: The ensemble's name; None for no ensemble.
        members: The exported networks.

    Raises:
        EnsembleError: They cannot be averaged.
    """
    first = members[0]
    check_same(members)
    if ensemble is None or not (repository / ensemble).exists():
        return
    new = {member.name for member in members}
    current = read_ensemble(repository, ensemble).members
    existing = {member.model for member in current if (repository / member.model).exists()} - new
    shape, classes = list(first.input_shape), [first.num_classes]
    for name in sorted({*existing, ensemble}):
        shapes, labels = read_interface(repository / name)
        if shapes[:2] != [shape, classes]:
            raise EnsembleError(
                f"'{name}' has input and output {shapes[:2]}, but '{first.name}' has {[shape, classes]}; choose another --ensemble name"
            )
        if labels is not None and class_names_from_labels(labels) != first.class_names:
            raise EnsembleError(
                f"the class names in {repository / name / LABELS_FILE} differ from those of '{first.name}'; choose another --ensemble "
                "name or, for an ONNX file, pass the same class names (--labels FILE)"
            )
    stated = {name: parameter(read_config(repository / name), PREPROCESSING) for name in sorted(existing)}
    common_preprocessing(stated | {member.name: member.rule for member in members})


def _ensemble_files(
    files: RepositoryView, ensemble: Ensemble, members: Sequence[ExportedMember], batches: Mapping[str, int]
) -> dict[str, bytes]:
    """Compute the files of an ensemble; `files` is the repository with its new members."""
    repository = files.repository
    check_members_fit(repository, ensemble.name, members)
    others = [member.model for member in ensemble.members if member.model not in batches]
    others += [ensemble.name] if (repository / ensemble.name).exists() else []
    # At most the batch of each member; an existing member may allow less.
    batch = min([*batches.values(), *(read_max_batch_size(repository / name, None) for name in others)])
    return ensemble_files(files, ensemble, members[0].interface(batch), labels_text(members[0]))


def changed_files(repository: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files whose content on disk differs; a server would reload a model whose files are written again unchanged."""
    existing = {path: (repository / path).read_bytes() for path in files if (repository / path).is_file()}
    return {path: content for path, content in files.items() if existing.get(path) != content}
