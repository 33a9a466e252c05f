"""What of a repository no ensemble needs any more: members, versions of members, and averaging models, and how to be rid of them."""

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
from .history import Edit, read_history, undoable_edits

_OF_AN_AVERAGE = {"average", "weights", "members"}
# What an export, a profile or an engine puts into a model's folder, and into a version's.
_FILES = (CONFIG_FILE, LABELS_FILE)
_VERSION_FILES = (MODEL_FILE, REPORT_FILE, PLAN_FILE, MANIFEST_FILE)
_OF_A_VERSION = ("sha256", "mask_digest", "precision")
_Vote = tuple[str, int]


@dataclass(frozen=True)
class Prunable:
    """A model, or one version of it (``version`` None: the whole model), that nothing uses.

    ``why`` says so in words, ``bytes`` is what its ``files`` (relative to the repository) take.
    """

    model: str
    version: int | None
    why: str
    bytes: int
    files: tuple[str, ...]


def prune_plan(
    repository: Path, *, keep: int, also_used: Collection[str] = (), on_progress: Callable[[str], None] = lambda text: None
) -> list[Prunable]:
    """What in ``repository`` no ensemble uses, and no state that a rollback of at most ``keep`` edits of any ensemble goes back to.

    That is averaging models, and versions of members that voted once, by the history: a network that never did, such as a standard one
    that is served next to an ensemble, is nobody's to delete. Nor are fused graphs, models and versions whose file no parameter
    ``sha256.<version>`` describes, for no export wrote them, and folders with files of somebody else's, of which ``on_progress`` is told.
    ``also_used`` names what is used otherwise, "MODEL" or "MODEL@VERSION": what a server has loaded for an older state, or what another
    model of the repository calls.

    Raises:
        ExportError: ``keep`` is below 0.
        ConfigError: a configuration cannot be read: what it uses is not known.
        HistoryError: nor is what a rollback needs, where the history is damaged.
        OSError: a file or folder cannot be read.
    """
    if keep < 0:
        raise ExportError(f"the number of edits that can still be rolled back must be 0 or more, got {keep}")
    configs = read_models(repository)
    history = read_history(repository)
    used = _used([*configs.values(), *_profiles_of_ensembles(repository, configs)], history, keep, also_used)
    used_models, voted = {model for model, _ in used}, _voted(history)
    found = []
    for name, config in configs.items():
        if config.platform == "ensemble":
            continue
        if AVERAGING_NAME.fullmatch(name) and set(config.parameters) >= _OF_AN_AVERAGE:
            found += [] if name in used_models else _prunable(repository, name, None, "averages for no ensemble", on_progress)
        elif not set(config.parameters) >= _OF_AN_AVERAGE:  # else a fused graph
            unused = {key[1]: why for key, why in voted.items() if key[0] == name and not used & {key, (name, None)}}
            found += _of_member(repository, name, config, unused, on_progress)
    return found


def prune_files(repository: Path, chosen: Sequence[Prunable]) -> tuple[dict[str, bytes], list[str]]:
    """The files to write (``write_files``) and those to remove before (``remove_files``) so that ``chosen`` of a ``prune_plan`` are gone.

    A model or a version goes as one folder, in one rename, so that a server never sees half of it. Of a model that stays, what its
    configuration and its profiles say of a version that goes is taken out, and with it the comments in these files; a profile that was as
    it was written stays so. List, plan and remove under one lock; after a kill between, the next ``prune_plan`` lists what was not done.

    Raises:
        ExportError: the files on disk are no longer those that were listed.
        ConfigError: a configuration cannot be read.
        OSError: a file or folder cannot be read.
    """
    gone: dict[str, list[int]] = {}
    removals = []
    for one in chosen:
        place = one.model if one.version is None else f"{one.model}/{one.version}"
        files = _files_below(repository, place)
        if tuple(files) != one.files:
            raise ExportError(f"the files in {repository / place} are no longer those that were listed: list them again")
        if one.version is not None:
            gone.setdefault(one.model, []).append(one.version)
        if (repository / place).is_dir():
            removals.append(place)
    writes = {}
    for model, versions in gone.items():
        folder = repository / model
        # The configuration last: from it a prune that was killed is told.
        for path in config_paths(folder):
            before = config_from_file(path)
            after = _without(before, versions)
            if after != before:
                update_digest(before, after)
                writes[path.relative_to(repository).as_posix()] = pbtxt_from_config(after)
    return writes, removals


def _profiles_of_ensembles(repository: Path, configs: Mapping[str, schema.ModelConfig]) -> list[schema.ModelConfig]:
    """The profiles of ensembles: nobody writes any, but a server would take one that is there."""
    ensembles = [name for name, config in configs.items() if config.platform == "ensemble"]
    return [config_from_file(path) for name in ensembles for path in config_paths(repository / name)[:-1]]


def _used(
    configs: Sequence[schema.ModelConfig], history: Sequence[Edit], keep: int, also_used: Collection[str]
) -> set[tuple[str, int | None]]:
    """The versions of models that are used, None for all versions of a model."""
    used: set[tuple[str, int | None]] = set()
    # The steps as they are written: also of an ensemble that is wired otherwise than ours.
    for config in configs:
        for step in config.ensemble_scheduling.step:
            used.add((step.model_name, step.model_version if step.model_version > 0 else None))  # -1 is the newest, whichever that will be
    for ensemble in {edit.ensemble for edit in history}:
        edits = undoable_edits(history, ensemble)
        for edit in edits[max(0, len(edits) - keep) :]:
            if edit.before is not None:
                used |= {(vote.model, vote.version) for vote in edit.before.votes.members}
                used |= {(model, None) for model in edit.before.averaging}
    for name in also_used:
        model, _, version = name.partition("@")
        used.add((model, int(version) if version.isdecimal() else None))
    return used


def _voted(history: Sequence[Edit]) -> dict[_Vote, str]:
    """All that voted once, by the history, and when last."""
    told = {}
    for edit in history:
        before, after = (
            set() if state is None else {(vote.model, vote.version) for vote in state.votes.members} for state in (edit.before, edit.after)
        )
        for vote in before | after:
            told[vote] = f"voted in '{edit.ensemble}' {'at' if vote in after else 'until'} {edit.time}"
    return told


def _of_member(
    repository: Path, name: str, config: schema.ModelConfig, unused: dict[int, str], on_progress: Callable[[str], None]
) -> list[Prunable]:
    """What of a model can go, of whose versions ``unused`` voted once (why, by version) and are not used now."""
    there = [version for version in versions_in(repository / name) if (repository / name / str(version)).is_dir()]
    unused = {version: why for version, why in unused.items() if f"sha256.{version}" in config.parameters}
    if there and set(there) <= set(unused):
        texts = [unused[version] for version in there]
        why = texts[0] if len(texts) == 1 else "; ".join(map("version {}: {}".format, there, texts))
        return _prunable(repository, name, None, why, on_progress)
    specific = set(config.version_policy.specific.versions)
    if specific and not specific - set(unused):
        on_progress(
            f"{repository / name} is left alone: its version_policy names nothing but what could go, and would leave nothing to serve"
        )
        return []
    found = []
    for version, why in sorted(unused.items()):
        if version not in there:
            found.append(Prunable(name, version, f"{why}; its files are gone, and {CONFIG_FILE} still describes them", 0, ()))
        else:
            found += _prunable(repository, name, version, why, on_progress)
    return found


def _prunable(repository: Path, name: str, version: int | None, why: str, on_progress: Callable[[str], None]) -> list[Prunable]:
    """A model, or one version of it; nothing where a file of somebody else's is in its folder."""
    place = name if version is None else f"{name}/{version}"
    files = _files_below(repository, place)
    if others := [file for file in files if not _is_own(file.removeprefix(f"{name}/"))]:
        on_progress(f"{repository / place} is left alone: it holds {', '.join(others)}, which no export wrote; move that away")
        return []
    return [Prunable(name, version, why, sum((repository / file).lstat().st_size for file in files), tuple(files))]


def _is_own(path: str) -> bool:
    """Whether a file in a model's folder is one that this project writes."""
    folder, _, file = path.rpartition("/")
    if folder == PROFILES_FOLDER:
        return file.endswith(".pbtxt")
    return file in (_VERSION_FILES if folder.isdecimal() else _FILES if not folder else ())


def _files_below(repository: Path, place: str) -> list[str]:
    """All files below a folder, sorted, relative to the repository; a link is a file; none where there is no such folder."""

    def refused(error: OSError) -> None:
        raise error  # `os.walk` would pass over a folder that cannot be read

    if not (repository / place).exists():
        return []
    found = []
    for above, folders, files in os.walk(repository / place, onerror=refused):
        links = [name for name in folders if (Path(above) / name).is_symlink()]
        found += [(Path(above) / name).relative_to(repository).as_posix() for name in (*files, *links)]
    return sorted(found)


def _without(config: schema.ModelConfig, versions: Sequence[int]) -> schema.ModelConfig:
    """A configuration that says nothing of these versions."""
    after = schema.ModelConfig()
    after.CopyFrom(config)
    for version in versions:
        for key in _OF_A_VERSION:
            if (name := f"{key}.{version}") in after.parameters:
                del after.parameters[name]
    policy = after.version_policy
    if policy.HasField("specific"):
        policy.specific.versions[:] = [version for version in policy.specific.versions if version not in versions]
    return after
