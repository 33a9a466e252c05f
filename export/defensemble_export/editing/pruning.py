"""Members, versions of members and averaging models that no ensemble needs any more, and how to delete them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from defensemble_repository.names import (
    AVERAGING_NAME,
    CONFIG_FILE,
    LABELS_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    PLAN_FILE,
    PROFILES_FOLDER,
    REPORT_FILE,
)
from defensemble_repository.pbtxt import config_from_file, pbtxt_from_config, schema
from defensemble_repository.profile_digest import update_digest
from defensemble_repository.reader import config_paths, read_models, versions_in

from ..errors import ExportError
from .history import Edit, Snapshot, read_history, undoable_edits

_AVERAGING_PARAMETERS = {"average", "weights", "members"}
# The files that exports, profiles and engines write into the folder of a model, and into that of a version.
_MODEL_FILES = (CONFIG_FILE, LABELS_FILE)
_VERSION_FILES = (MODEL_FILE, REPORT_FILE, PLAN_FILE, MANIFEST_FILE)
_VERSION_PARAMETERS = ("sha256", "mask_digest", "precision", "mask_aware")
_Key = tuple[str, int]


@dataclass(frozen=True)
class Prunable:
    """A model, or one version of it, that nothing uses.

    Attributes:
        model: The model's name.
        version: The version; None for the whole model.
        reason: The reason, in words.
        bytes: The size of its files.
        files: Its files, relative to the repository.

    Example:
        >>> [(entry.model, entry.version, entry.reason) for entry in find_prunable(Path("model_repository"), keep_edits=10)]
    """

    model: str
    version: int | None
    reason: str
    bytes: int
    files: tuple[str, ...]


def find_prunable(
    repository: Path, *, keep_edits: int, also_used: Collection[str] = (), on_progress: Callable[[str], None] = lambda text: None
) -> list[Prunable]:
    """Find the models and versions that no ensemble uses, and no state that can still be rolled back to.

    Only averaging models and former members (by the history) are candidates. Never candidates are networks that were never members, such
    as a standard network that is served on its own; fused graphs; versions that no parameter `sha256.<version>` describes, because no
    export wrote them; and folders with other files, which are reported to `on_progress`.

    Args:
        repository: The repository.
        keep_edits: The number of edits of each ensemble that can still be rolled back, at least 0.
        also_used: Models in other use, as `MODEL` or `MODEL@VERSION`: loaded by a server for an older state, or called by another model.
        on_progress: Receives a message for each folder that is skipped.

    Raises:
        ExportError: `keep_edits` is below 0.
        ConfigError: A configuration cannot be read, so the models that it uses are unknown.
        HistoryError: The history is damaged, so the models that a rollback needs are unknown.
        OSError: A file or folder cannot be read.
    """
    if keep_edits < 0:
        raise ExportError(f"the number of edits that can still be rolled back must be 0 or more, got {keep_edits}")
    configs = read_models(repository)
    history = read_history(repository)
    used = _used([*configs.values(), *_profiles_of_ensembles(repository, configs)], history, keep_edits, also_used)
    used_models, former_members = {model for model, _ in used}, _former_members(history)
    prunable = []
    for name, config in configs.items():
        if config.platform == "ensemble":
            continue
        if AVERAGING_NAME.fullmatch(name) and set(config.parameters) >= _AVERAGING_PARAMETERS:
            prunable += [] if name in used_models else _prunable(repository, name, None, "no ensemble uses it", on_progress)
        elif not set(config.parameters) >= _AVERAGING_PARAMETERS:  # with these, it is a fused graph
            unused = {key[1]: reason for key, reason in former_members.items() if key[0] == name and not used & {key, (name, None)}}
            prunable += _prunable_versions(repository, name, config, unused, on_progress)
    return prunable


def prune_files(repository: Path, chosen: Sequence[Prunable]) -> tuple[dict[str, bytes], list[str]]:
    """Return how to delete `chosen`: the files to write (`write_files`) and those to remove before that (`remove_files`).

    A model or a version is removed as one folder by one rename, so that a server never sees a part of it. The configuration and the
    profiles of a model that stays no longer describe its removed versions; these files lose their comments. Unmodified profiles stay
    recognisable as unmodified. Call `find_prunable` and write under one lock; after a kill, the next `find_prunable` finds the rest.

    Args:
        repository: The repository.
        chosen: What to delete, from `find_prunable`.

    Raises:
        ExportError: The files on disk have changed since `find_prunable`.
        ConfigError: A configuration cannot be read.
        OSError: A file or folder cannot be read.
    """
    removed_versions: dict[str, list[int]] = {}
    removals = []
    for item in chosen:
        folder_name = item.model if item.version is None else f"{item.model}/{item.version}"
        files = _files_below(repository, folder_name)
        if tuple(files) != item.files:
            raise ExportError(f"the files in {repository / folder_name} have changed since they were listed; list them again")
        if item.version is not None:
            removed_versions.setdefault(item.model, []).append(item.version)
        if (repository / folder_name).is_dir():
            removals.append(folder_name)
    writes = {}
    for model, versions in removed_versions.items():
        folder = repository / model
        # The configuration is written last: the next prune recognises an interrupted one by it.
        for path in config_paths(folder):
            before = config_from_file(path)
            after = _without(before, versions)
            if after != before:
                update_digest(before, after)
                writes[path.relative_to(repository).as_posix()] = pbtxt_from_config(after)
    return writes, removals


def _profiles_of_ensembles(repository: Path, configs: Mapping[str, schema.ModelConfig]) -> list[schema.ModelConfig]:
    """Return the profiles of ensembles; this package writes none, but a server would use them."""
    ensembles = [name for name, config in configs.items() if config.platform == "ensemble"]
    return [config_from_file(path) for name in ensembles for path in config_paths(repository / name)[:-1]]


def _used(
    configs: Sequence[schema.ModelConfig], history: Sequence[Edit], keep_edits: int, also_used: Collection[str]
) -> set[tuple[str, int | None]]:
    """Return the models and versions in use; version None stands for all versions of a model."""
    used: set[tuple[str, int | None]] = set()
    # The raw steps, which also cover ensembles that are wired in another way than ours.
    for config in configs:
        for step in config.ensemble_scheduling.step:
            used.add((step.model_name, step.model_version if step.model_version > 0 else None))  # -1 is the newest version, now and later
    for ensemble in {edit.ensemble for edit in history}:
        edits = undoable_edits(history, ensemble)
        for edit in edits[max(0, len(edits) - keep_edits) :]:
            if edit.before is not None:
                used |= _keys(edit.before)
                used |= {(model, None) for model in edit.before.averaging}
    for name in also_used:
        model, _, version = name.partition("@")
        used.add((model, int(version) if version.isdecimal() else None))
    return used


def _keys(state: Snapshot) -> set[_Key]:
    return {(member.model, member.version) for member in state.ensemble.members}


def _former_members(history: Sequence[Edit]) -> dict[_Key, str]:
    """Return all members that the history knows, and until when they were members."""
    reasons = {}
    for edit in history:
        before, after = (set() if state is None else _keys(state) for state in (edit.before, edit.after))
        for key in before | after:
            reasons[key] = f"was a member of '{edit.ensemble}' {'at' if key in after else 'until'} {edit.time}"
    return reasons


def _prunable_versions(
    repository: Path, name: str, config: schema.ModelConfig, unused: dict[int, str], on_progress: Callable[[str], None]
) -> list[Prunable]:
    """Return what can be deleted of a model; `unused` are its versions that are no longer used, with the reasons."""
    versions = [version for version in versions_in(repository / name) if (repository / name / str(version)).is_dir()]
    unused = {version: reason for version, reason in unused.items() if f"sha256.{version}" in config.parameters}
    if versions and set(versions) <= set(unused):
        texts = [unused[version] for version in versions]
        reason = texts[0] if len(texts) == 1 else "; ".join(map("version {}: {}".format, versions, texts))
        return _prunable(repository, name, None, reason, on_progress)
    specific = set(config.version_policy.specific.versions)
    if specific and not specific - set(unused):
        on_progress(f"skipped {repository / name}: its version_policy names only unused versions, so nothing would be left to serve")
        return []
    prunable = []
    for version, reason in sorted(unused.items()):
        if version not in versions:
            prunable.append(Prunable(name, version, f"{reason}; its files are deleted, but {CONFIG_FILE} still describes them", 0, ()))
        else:
            prunable += _prunable(repository, name, version, reason, on_progress)
    return prunable


def _prunable(repository: Path, name: str, version: int | None, reason: str, on_progress: Callable[[str], None]) -> list[Prunable]:
    """Return a model, or one version of it; nothing if its folder contains other files than ours."""
    folder = name if version is None else f"{name}/{version}"
    files = _files_below(repository, folder)
    if others := [file for file in files if not _is_own(file.removeprefix(f"{name}/"))]:
        on_progress(f"skipped {repository / folder}: it contains {', '.join(others)}, which no export wrote; move that away")
        return []
    return [Prunable(name, version, reason, sum((repository / file).lstat().st_size for file in files), tuple(files))]


def _is_own(path: str) -> bool:
    """Return whether a file in a model's folder is one that this project writes."""
    folder, _, file = path.rpartition("/")
    if folder == PROFILES_FOLDER:
        return file.endswith(".pbtxt")
    return file in (_VERSION_FILES if folder.isdecimal() else _MODEL_FILES if not folder else ())


def _files_below(repository: Path, folder: str) -> list[str]:
    """Return all files below a folder, sorted, relative to the repository; links count as files. Empty if there is no such folder."""

    def on_error(error: OSError) -> None:
        raise error  # by default, `os.walk` skips folders that cannot be read

    if not (repository / folder).exists():
        return []
    paths = []
    for parent, folders, files in os.walk(repository / folder, onerror=on_error):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        paths += [(Path(parent) / name).relative_to(repository).as_posix() for name in (*files, *links)]
    return sorted(paths)


def _without(config: schema.ModelConfig, versions: Sequence[int]) -> schema.ModelConfig:
    """Return a configuration that does not mention these versions."""
    after = schema.ModelConfig()
    after.CopyFrom(config)
    for version in versions:
        for key in _VERSION_PARAMETERS:
            if (name := f"{key}.{version}") in after.parameters:
                del after.parameters[name]
    policy = after.version_policy
    if policy.HasField("specific"):
        policy.specific.versions[:] = [version for version in policy.specific.versions if version not in versions]
    return after
