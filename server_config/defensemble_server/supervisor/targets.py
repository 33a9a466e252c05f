"""What the supervisor asks, and what the correct answers are."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from defensemble_repository.averaging import ROUNDED_TOLERANCE, largest_difference, read_averaging, reference_outputs
from defensemble_repository.names import MODEL_FILE, PENDING_FILE
from defensemble_repository.view import file_digest

from ..options import ServeOptions
from ..process.launch import read_content
from ..readiness import images_for
from ..repository import Model, Repository, config_path, declares_ensemble
from .connection import InferRequest
from .references import Array, References

# Largest difference, as `largest_difference` measures it, of float32 answers on a CPU: rounding depends on the requests that share a batch.
FLOAT32_TOLERANCE = 1e-4
_LONGEST_EDIT_S = 60.0


@dataclass(frozen=True)
class Target:
    """A model that is asked.

    Args:
        name: Its name.
        version: Its version; None for an ensemble.
        digest: SHA-256 of what determines its answers: its model file, or the configuration of an ensemble and its members' files.
        request: The request.
        members: The members of an ensemble, with their versions.
        average: What the ensemble averages and its weights; None if that is not known.
        tolerance: Largest difference from the correct answer.
        is_known: Whether the server has loaded the file of this digest, and not one that was replaced since.
    """

    name: str
    version: int | None
    digest: str
    request: InferRequest
    members: tuple[tuple[str, int], ...] = ()
    average: tuple[str, tuple[float, ...]] | None = None
    tolerance: float = FLOAT32_TOLERANCE
    is_known: bool = True

    @property
    def is_ensemble(self) -> bool:
        """Whether it is an ensemble."""
        return self.version is None

    @property
    def label(self) -> str:
        """Its name, with the version of a model that has one."""
        return self.name if self.version is None else f"{self.name}@{self.version}"

    @property
    def member_labels(self) -> tuple[str, ...]:
        """The labels of the members of an ensemble."""
        return tuple(f"{name}@{version}" for name, version in self.members)


@dataclass(frozen=True)
class Problem:
    """What is wrong with an answer.

    Args:
        fault: `nan`, `wrong`, or `error` if there is no answer but an error.
        text: The same in words.
    """

    fault: str
    text: str


class Targets:
    """The models of a repository that a server has loaded, and their correct answers.

    The first answer of a model file, which was verified just before, is the reference for every later load of the same file. The correct
    answer of an ensemble is the average of its members' references. A file that is replaced while its version stays loaded has none: the
    server answers from the old file, until an unknown time at which it loads the new one.

    Args:
        folder: The repository.
        options: The options of the server.
        references: A file for the correct answers (`References`).
    """

    def __init__(self, folder: Path, options: ServeOptions, references: BinaryIO) -> None:
        self._folder, self._options = folder, options
        self._seen: Any = None
        self._references = References(references)
        # The digest of each file when it was loaded; None once it has been replaced.
        self._loaded: dict[tuple[str, int], str | None] = {**self._references.loaded}
        # The latest correct answer of each ensemble, with its digest: an ensemble answers as before until its new configuration is loaded.
        self._latest: dict[str, tuple[str, Array]] = {}
        self._content = Repository(folder, {}, {})
        self._ensembles: list[str] = []
        self._targets: dict[str, Target] = {}

    @property
    def ensembles(self) -> list[str]:
        """The names of all ensembles in the repository, also of those that cannot be served."""
        return self._ensembles

    @property
    def problems(self) -> Mapping[str, str]:
        """For each model that the repository has and that cannot be served, the reason."""
        return self._content.problems

    @property
    def is_edited(self) -> bool:
        """Whether an edit is in progress; one that began long ago was interrupted."""
        try:
            return time.time() - (self._folder / PENDING_FILE).stat().st_mtime < _LONGEST_EDIT_S
        except FileNotFoundError:
            return False

    def is_unused(self, target: Target) -> bool:
        """Return whether a model is a part of no ensemble."""
        used = {member for other in self._targets.values() for member, _ in other.members}
        return not target.is_ensemble and target.name not in used

    def current(self, ready: Collection[tuple[str, int]]) -> list[Target]:
        """Return what to ask: classifiers and fused graphs first, then ensembles.

        Args:
            ready: The loaded versions.

        Raises:
            NotServableError, RepositoryError, OSError: The repository cannot be read.
        """
        seen = (frozenset(ready), self._signature())
        if seen != self._seen:
            # Without the averaging models of earlier edits, which would take memory with each edit.
            self._content, _ = read_content(self._folder, self._options).without_unused_averages()
            names = [*self._content.models, *self._content.problems]
            self._ensembles = [name for name in names if declares_ensemble(self._folder / name, self._options.profile)]
            self._loaded = {version: digest for version, digest in self._loaded.items() if version in ready}
            self._targets = {}
            for model in sorted(self._content.models.values(), key=lambda model: model.is_ensemble):
                self._targets.update({target.label: target for target in self._of_model(model, ready)})
            self._seen = seen
        return list(self._targets.values())

    def forget(self) -> None:
        """Forget which files are loaded: the server has ended, and loads all of them again."""
        self._seen = None
        self._loaded.clear()
        self._latest.clear()

    def problem(self, target: Target, answer: Array) -> Problem | None:
        """Return what is wrong with an answer; the first finite answer of a model file becomes its reference."""
        if not np.isfinite(answer).all():
            return Problem("nan", "its answer has values that are not finite")
        if not target.is_known:
            return None
        expected = self._expected(target)
        if expected is None:
            self._references.add(target.name, target.version, target.digest, answer)
            return None
        difference = largest_difference(answer, expected)
        if difference <= target.tolerance:
            if target.is_ensemble:
                self._latest[target.name] = target.digest, expected
            return None
        digest, before = self._latest.get(target.name, (target.digest, expected))
        if digest != target.digest and largest_difference(answer, before) <= target.tolerance:
            return None
        return Problem("wrong", f"its answer differs by {difference:.3g} from the correct one, more than {target.tolerance:g}")

    def file_problem(self, target: Target) -> str | None:
        """Return what is wrong with the file of a model on disk, or None if it is the one whose answers were correct."""
        model = self._content.models[target.name]
        path = _file(self._folder, model, target.version or 0)
        try:
            digest = file_digest(path)
        except OSError as error:
            return f"{path} cannot be read: {error.strerror or error}"
        stated = model.parameter(f"sha256.{target.version}")
        if digest == target.digest and stated in (None, digest):
            return None
        expected = target.digest if stated in (None, digest) else stated
        return f"{path} was changed: its SHA-256 is {digest[:16]}..., expected {expected[:16]}..."

    def _expected(self, target: Target) -> Array | None:
        if target.average is None:
            return self._references.answer(target.name, target.digest)
        members = [self._targets.get(label) for label in target.member_labels]
        logits = [self._references.answer(member.name, member.digest) for member in members if member is not None]
        known = [values for values in logits if values is not None]
        if len(known) < len(target.members):
            return self._references.answer(target.name, target.digest)
        average, weights = target.average
        expected: Array = reference_outputs(known, average, weights)["probabilities"].astype(np.float32)
        return expected

    def _of_model(self, model: Model, ready: Collection[tuple[str, int]]) -> list[Target]:
        name, config = model.name, model.config
        if model.is_ensemble:
            outputs = [tensor.name for tensor in config.output]
            is_callable = "probabilities" in outputs and [tensor.name for tensor in config.input] == ["images"]
            if not is_callable or not any(entry[0] == name for entry in ready):
                return []
            newest = {member: max((v for n, v in ready if n == member), default=0) for member, _ in model.members}
            members = tuple((member, version if version > 0 else newest[member]) for member, version in model.members)
            averaging = read_averaging(config, self._content.configs)
            average = None if averaging is None else (averaging[0], tuple(averaging[1]))
            loaded = [self._targets[label] for label in (f"{member}@{version}" for member, version in members) if label in self._targets]
            config_digest = file_digest(config_path(self._folder / name, self._options.profile))
            digest = hashlib.sha256("".join([config_digest, *(target.digest for target in loaded)]).encode()).hexdigest()
            tolerance = max([_tolerance(self._content.models[member], version) for member, version in members], default=FLOAT32_TOLERANCE)
            request = InferRequest.encode(name, None, images_for(model), "probabilities")
            is_known = all(target.is_known for target in loaded)
            if average is None:
                is_known = self._is_loaded(name, max(version for entry, version in ready if entry == name), digest) and is_known
            return [Target(name, None, digest, request, members, average, tolerance, is_known)]
        if not (model.is_classifier or model.is_fused):
            return []
        output = "logits" if model.is_classifier else "probabilities"
        targets = []
        for version in model.versions:
            if (name, version) in ready:
                digest = file_digest(_file(self._folder, model, version))
                request = InferRequest.encode(name, version, images_for(model), output)
                is_known = self._is_loaded(name, version, digest)
                targets.append(Target(name, version, digest, request, tolerance=_tolerance(model, version), is_known=is_known))
        return targets

    def _is_loaded(self, name: str, version: int, digest: str) -> bool:
        """Return whether a version was loaded with this digest, and has not been changed since."""
        if self._loaded.setdefault((name, version), digest) != digest:
            self._loaded[name, version] = None
        return self._loaded[name, version] is not None

    def _signature(self) -> Any:
        """Return what changes if a configuration of the repository changes."""
        paths = sorted([*self._folder.glob("*/config.pbtxt"), *self._folder.glob("*/configs/*.pbtxt")])
        stats = []
        for path in paths:
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # an edit has just deleted it
            stats.append((str(path), status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(stats)


def _file(folder: Path, model: Model, version: int) -> Path:
    return folder / model.name / str(version) / (model.config.default_model_filename or MODEL_FILE)


def _tolerance(model: Model, version: int) -> float:
    is_float32 = model.parameter(f"precision.{version}") in (None, "fp32") and not model.needs_gpu
    return FLOAT32_TOLERANCE if is_float32 else ROUNDED_TOLERANCE
