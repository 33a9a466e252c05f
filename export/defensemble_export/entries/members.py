"""What an export puts into a model repository: every file as a path and its bytes, before anything is written."""

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
    """One exported network: the bytes of its ONNX file, what its configuration has to say, and the report of its verification.

    ``mask_digest`` is None where there are no masks that we know of: a network of somebody else's; ``preprocessing`` where it is not known
    how images are brought to size.
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

    def interface(self, max_batch_size: int) -> Interface:
        """What it takes and gives, ``max_batch_size`` images at once."""
        return Interface(self.input_shape, self.num_classes, max_batch_size)

    @property
    def rule(self) -> str | None:
        """The parameter ``preprocessing`` of its configuration."""
        return None if self.preprocessing is None else self.preprocessing.to_json()

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(self.class_names) != self.num_classes:
            raise ExportError(f"'{self.name}' has {self.num_classes} classes, but {len(self.class_names)} class names")
        object.__setattr__(self, "class_names", checked_class_names(self.class_names, f"the class names of '{self.name}'"))


def repository_plan(
    repository: Path,
    members: Sequence[ExportedMember],
    *,
    ensemble: str | None = "ensemble",
    average: str | None = None,
    weights: Mapping[str, float] | None = None,
    max_batch_size: int | None = None,
    replace: bool = False,
) -> dict[str, bytes]:
    """Compute the files that add ``members`` and, unless ``ensemble`` is None, an ensemble of them to ``repository``.

    Paths are relative to the repository, in the order in which they are to appear, so that each state on the way can be served: a member's
    configuration before the version that it describes, an ensemble's last. A member that exists already gets its next version
    (``replace``), never new bytes for an old one, and keeps the hand edits of its configuration. An ensemble that exists keeps its other
    members, weights, average and hand edits: ``members`` are pinned at their new versions, and added with weight 1 where they did not vote;
    ``weights`` and ``average`` change what they name. None stands for what is there, else for ``"probabilities"`` and 64.

    Raises:
        ExistsError: a member or the ensemble exists already, and ``replace`` is False.
        EnsembleError: the members cannot be averaged, a name or weight is not allowed, or the ensemble is not one that was exported.
        ConfigError: a configuration in the repository cannot be read.
        ExportError: ``max_batch_size`` is out of its range, or not what an existing configuration says.
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
    """Refuse by names and numbers alone, before any slow work, as ``repository_plan``; return the largest batch of each member."""
    if max_batch_size is not None:
        checked_batch_size(max_batch_size, "max_batch_size")
    twice = sorted({name for name in members if members.count(name) > 1})
    if twice:
        raise EnsembleError(f"{', '.join(twice)}: given twice; members are named after their files, so rename one")
    _check_free(repository, members, ensemble, replace=replace)
    usual = DEFAULT_MAX_BATCH_SIZE if max_batch_size is None else max_batch_size
    if ensemble is not None:
        _planned_ensemble(repository, members, ensemble, average, weights)
        if (repository / ensemble).exists():
            # A new member is not to be what makes an ensemble take less than it did.
            usual = max(usual, read_max_batch_size(repository / ensemble, max_batch_size))
    return {name: read_max_batch_size(repository / name, max_batch_size) if (repository / name).exists() else usual for name in members}


def _planned_ensemble(repository: Path, members: Sequence[str], name: str, average: str | None, weights: Mapping[str, float]) -> Ensemble:
    """The ensemble as it will be: the existing one with ``members`` at their next versions, else one of these alone."""
    versions = {member: next_version(repository / member) for member in members}
    if (repository / name).exists():
        known = read_ensemble(repository, name)
    else:
        known = Ensemble(name, tuple(Member(member, version) for member, version in versions.items()))
    planned = known.extended(versions, weights, average)
    gone = [vote.model for vote in planned.members if vote.model not in versions and not (repository / vote.model).exists()]
    if gone:
        raise EnsembleError(
            f"'{name}' lets {', '.join(gone)} vote, which {repository} lacks: put it back, or choose another --ensemble name"
        )
    return planned


def _check_free(repository: Path, members: Sequence[str], ensemble: str | None, *, replace: bool) -> None:
    for name in members:
        check_name(name)
        if (repository / name).exists():
            if is_ensemble(read_config(repository / name)):
                raise ExistsError(f"{repository / name} is an ensemble, and cannot become a member: choose another name (--name NAME)")
            if not replace:
                raise ExistsError(
                    f"{repository / name} exists already: choose another name (--name NAME, or another file name), or pass --replace, "
                    "which adds the next version and keeps the old"
                )
    if ensemble is None:
        return
    check_name(ensemble)
    if (repository / ensemble).exists():
        if not is_ensemble(read_config(repository / ensemble)):
            raise ExistsError(f"{repository / ensemble} is not an ensemble: choose another --ensemble name")
        if not replace:
            raise ExistsError(
                f"ensemble {repository / ensemble} exists already: choose another --ensemble name, or pass --replace, "
                "which adds the members exported here and keeps the others"
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
    """Set what the configuration of a member or a fused graph states of its ``version``, whose content is ``member``."""
    sha256, masks = hashlib.sha256(member.onnx).hexdigest(), member.mask_digest
    describe_version(config, version, precision=member.precision, sha256=sha256, mask_digest=masks, preprocessing=member.rule)


def version_files(member: ExportedMember, version: int) -> dict[str, bytes]:
    """Return the files of a version of a model: its graph, and the report of its verification where there is one."""
    report = {} if member.report is None else {f"{member.name}/{version}/{REPORT_FILE}": member.report}
    return {f"{member.name}/{version}/{MODEL_FILE}": member.onnx, **report}


def labels_text(member: ExportedMember) -> bytes:
    """The class names as Triton reads them, one a line."""
    return "".join(f"{label}\n" for label in member.class_names).encode()


def check_same_interface(folder: Path, member: ExportedMember) -> None:
    """Refuse (ExistsError, EnsembleError) a new version of the model in `folder` of another interface, class names or preprocessing."""
    shapes, labels = read_interface(folder)
    expected = [list(member.input_shape), [member.num_classes]]
    if shapes != expected:
        raise ExistsError(f"{folder} takes and gives {shapes}, the new version {expected}: export it under another name")
    if labels is not None and class_names_from_labels(labels) != member.class_names:
        raise ExistsError(f"the class names in {folder / LABELS_FILE} differ from the new version's: export it under another name")
    common_preprocessing(
        {member.name: parameter(read_config(folder), PREPROCESSING), f"{member.name}@{next_version(folder)}": member.rule},
        "export the new version under another name; where a stated rule is wrong, correct the parameter in "
        f"{folder / CONFIG_FILE}, or export the ONNX file with another --resize",
    )


def preprocessing_from_text(text: str | None, where: str) -> Preprocessing | None:
    """Read the rule in an ONNX file's metadata or a configuration's parameter, None where there is none; ``where`` names it in errors."""
    try:
        return None if text is None else Preprocessing.from_json(text, where)
    except ImagesError as error:
        raise ExportError(str(error)) from error


def check_same(members: Sequence[ExportedMember], *, shape: str = "input shape") -> None:
    """Refuse (EnsembleError) members of other images, preprocessing or classes; ``shape`` is what errors call the size of the images."""
    first = members[0]
    for member in members[1:]:
        fix = "average only networks that agree, and export others into an ensemble of their own (--ensemble NAME)"
        if member.input_shape != first.input_shape:
            differ = f"'{first.name}' has {first.input_shape}, '{member.name}' has {member.input_shape}"
            raise EnsembleError(f"members must share their {shape}: {differ}; {fix}")
        if member.class_names != first.class_names:
            differ = f"'{first.name}' and '{member.name}' have {first_difference(first.class_names, member.class_names)}"
            raise EnsembleError(f"members must share their class names: {differ}; {fix}")
    common_preprocessing({member.name: member.rule for member in members})


def check_members_fit(repository: Path, ensemble: str | None, members: Sequence[ExportedMember]) -> None:
    """Refuse (EnsembleError) ``members`` that cannot be averaged with each other and with those of ``ensemble`` in ``repository``."""
    first = members[0]
    check_same(members)
    if ensemble is None or not (repository / ensemble).exists():
        return
    new = {member.name for member in members}
    there = {vote.model for vote in read_ensemble(repository, ensemble).members if (repository / vote.model).exists()} - new
    shape, classes = list(first.input_shape), [first.num_classes]
    for name in sorted({*there, ensemble}):
        shapes, labels = read_interface(repository / name)
        if shapes[:2] != [shape, classes]:
            raise EnsembleError(f"'{name}' takes and gives {shapes[:2]}, '{first.name}' {[shape, classes]}: choose another --ensemble name")
        if labels is not None and class_names_from_labels(labels) != first.class_names:
            raise EnsembleError(
                f"the class names in {repository / name / LABELS_FILE} differ from those of '{first.name}': choose another --ensemble "
                "name, or, for an ONNX file, name its classes as there (--labels FILE)"
            )
    stated = {name: parameter(read_config(repository / name), PREPROCESSING) for name in sorted(there)}
    common_preprocessing(stated | {member.name: member.rule for member in members})


def _ensemble_files(
    files: RepositoryView, ensemble: Ensemble, members: Sequence[ExportedMember], batches: Mapping[str, int]
) -> dict[str, bytes]:
    """Compute the files of an ensemble; `files` are the repository with its members as they will be."""
    repository = files.repository
    check_members_fit(repository, ensemble.name, members)
    others = [vote.model for vote in ensemble.members if vote.model not in batches]
    others += [ensemble.name] if (repository / ensemble.name).exists() else []
    # At most what each member takes: the configuration of one that was there already may allow less.
    batch = min([*batches.values(), *(read_max_batch_size(repository / name, None) for name in others)])
    return ensemble_files(files, ensemble, members[0].interface(batch), labels_text(members[0]))


def changed_files(repository: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files that are not there with this content: a model whose files are touched is loaded again for nothing."""
    there = {path: (repository / path).read_bytes() for path in files if (repository / path).is_file()}
    return {path: content for path, content in files.items() if there.get(path) != content}
