"""A repository that is being looked through: its files read once, and all that is found wrong, each with its file and line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from google.protobuf import text_format

from ..ensemble import Ensemble, Member
from ..errors import ConfigError, RepositoryError
from ..names import CONFIG_FILE, HISTORY_FILE, MODEL_NAME, PROFILES_FOLDER
from ..pbtxt import LONGEST_REASON, config_from_pbtxt, schema
from ..reader import LARGEST_VERSION, checked_config, read_ensemble
from ..target import ANY, Target
from ..texts import shortened
from ..view import RepositoryView
from .finding import ConfigProblem, FieldLocator, Finding, Step

T = TypeVar("T")
APPLY = "say what is to vote with `defensemble ensemble apply FILE`"


@lru_cache(maxsize=64)
def _lines(text: str) -> FieldLocator:
    """Where the fields of a configuration stand: asked for once a finding, and there may be hundreds."""
    return FieldLocator(text)


@dataclass(eq=False)
class Inspection:
    """What is found wrong in `files`, judged for `target`; nothing that is wrong there is raised.

    Args:
        files: the repository.
        target: the Triton that is to serve it.
        profile: judge each model by its configuration of this profile, where it has one.
        all_profiles: compare every profile file of a model with its configuration.
        plans: compare TensorRT plans with their manifests; a server does that itself, with what its machine has.
        for_edit: an edit is to write ensembles into it.
        is_generated: whether a model file is the graph that averages these members over so many classes; None: no graph is opened.
        check_ensemble: called for each ensemble, with the configurations of its models, and whether it or one of them is refused.
    """

    files: RepositoryView
    target: Target = ANY
    _: KW_ONLY
    profile: str | None = None
    all_profiles: bool = False
    plans: bool = True
    for_edit: bool = False
    is_generated: Callable[[bytes, Ensemble, int], bool] | None = None
    check_ensemble: Callable[[Inspection, str, schema.ModelConfig, Mapping[str, schema.ModelConfig], bool], None] | None = None
    findings: list[Finding] = field(default_factory=list, init=False)
    _configs: dict[str, schema.ModelConfig | None] = field(default_factory=dict, init=False)
    _stops: str = field(default="", init=False)

    def add_finding(
        self,
        model: str,
        text: str,
        path: str | None = None,
        *way: Step,
        line: int | None = None,
        is_error: bool = True,
        unchecked: bool = False,
    ) -> None:
        """Add a finding about ``model``: in the file ``path`` (relative to the repository), where ``way`` leads to."""
        if way and path is not None:
            content = self.content(path)
            line = None if content is None else _lines(content.decode(errors="replace")).of(*way)
        file = None if path is None else self.files.repository / path
        found = Finding(model, shortened(text), file, line, is_error, self._stops or model, unchecked)
        if found not in self.findings:
            self.findings.append(found)

    def add_problem(self, model: str, fault: ConfigProblem, path: str) -> None:
        """Add what is wrong in the configuration at `path`."""
        self.add_finding(model, fault.text, path, *fault.way)

    @contextmanager
    def stopping(self, model: str) -> Iterator[None]:
        """What is found in this context keeps `model` from being served."""
        before, self._stops = self._stops, model
        try:
            yield
        finally:
            self._stops = before

    def config_path(self, model: str) -> str:
        """The file that configures a model, relative to the repository."""
        path = f"{model}/{PROFILES_FOLDER}/{self.profile}.pbtxt"
        there = self.profile is not None and (self.files.exists(path) or (self.files.repository / path).exists())
        return path if there else f"{model}/{CONFIG_FILE}"

    def refused(self, model: str, path: str | None = None) -> bool:
        """Whether something that refuses was found about ``model``, in the file ``path`` where one is given."""
        file = None if path is None else self.files.repository / path
        return any(one.is_error and one.model == model and (path is None or one.file == file) for one in self.findings)

    def content(self, path: str) -> bytes | None:
        """A file's bytes; None where there is none, and where it cannot be read, which is a finding."""
        return self._read(self.files.content, path)

    def digest(self, path: str) -> str | None:
        """A file's SHA-256; None as in ``content``."""
        return self._read(self.files.digest, path)

    def has(self, model: str) -> bool:
        """Whether ``model`` has a name that can be one, and a configuration."""
        return MODEL_NAME.fullmatch(model) is not None and self.exists(f"{model}/{CONFIG_FILE}") is True

    def exists(self, path: str) -> bool | None:
        """Whether there is such a file; None where it is a FIFO or a device, or cannot be looked at, which is a finding."""
        return self._read(self.files.exists, path)

    def _read(self, read: Callable[[str], T], path: str) -> T | None:
        try:
            return read(path)
        except OSError as error:
            self.add_finding(path.partition("/")[0], f"cannot be read: {error.strerror}: fix its permissions, or put it back", path)
            return None

    def config(self, model: str) -> schema.ModelConfig | None:
        """The configuration of a model that ``has`` one; None where it cannot be read, which is a finding."""
        if model not in self._configs:
            with self.stopping(model):
                self._configs[model] = self._checked(model)
        return self._configs[model]

    def _checked(self, model: str) -> schema.ModelConfig | None:
        path = self.config_path(model)
        config = self.parsed(model, path)
        if config is None:
            return None
        self._say_unknown_fields(model, path)
        try:
            return checked_config(config, self.files.repository / model)
        except ConfigError:
            if config.name not in ("", model):
                self.add_finding(model, f"says name: \"{config.name}\", but the folder is called '{model}': make them equal", path, "name")
            else:
                file, expected = config.default_model_filename, "expected the plain name of a file in the version's folder"
                text = f"says default_model_filename: {file!r}, {expected}: mend that line, or take it out"
                self.add_finding(model, text, path, "default_model_filename")
            return None

    def _say_unknown_fields(self, model: str, path: str) -> None:
        ways = self.target.unknown_fields
        content = self.content(path) if ways else None
        if content is None:
            return
        lines = _lines(content.decode(errors="replace"))
        for way in ways:
            # By the text: Triton's parser refuses such a field with any value, and a message does not say that one with 0 was written.
            if lines.has(*way):
                text = f"has the field {'.'.join(way)}, which {self.target} does not know, so it cannot read this file: remove the field"
                self.add_finding(model, text, path, *way)

    def parsed(self, model: str, path: str) -> schema.ModelConfig | None:
        """A configuration of ``model`` at ``path``; None where there is none or it is not valid, which is a finding with its line."""
        content = self.content(path)
        if content is None:
            return None
        try:
            return config_from_pbtxt(content.decode(errors="replace"), str(self.files.repository / path))
        except ConfigError as error:
            cause = error.__cause__
            line = cause.GetLine() if isinstance(cause, text_format.ParseError) else None
            self.add_finding(
                model, f"not a valid model configuration: {shortened(str(cause), LONGEST_REASON)}: mend that line", path, line=line
            )
            return None

    def versions(self, model: str) -> list[int]:
        """The version folders of a model, lowest first; empty where they cannot be listed, which is a finding."""
        try:
            found = self.files.versions(model)
        except OSError as error:
            self.add_finding(model, f"its folder cannot be listed: {error.strerror}: mend its permissions", model)
            return []
        for version in found:
            if version > LARGEST_VERSION:
                self.add_finding(
                    model, f"Triton counts versions up to {LARGEST_VERSION}: rename this folder to a lower one", f"{model}/{version}"
                )
        return found

    def profiles(self, model: str) -> list[str]:
        """The paths of a model's profile files, which are compared with its configuration; none where only one is judged, by itself."""
        if not self.all_profiles:
            return []
        folder = f"{model}/{PROFILES_FOLDER}"
        on_disk = {path.relative_to(self.files.repository).as_posix() for path in (self.files.repository / folder).glob("*.pbtxt")}
        planned = {path for path in self.files.planned if path.startswith(f"{folder}/") and path.endswith(".pbtxt")}
        return sorted(path for path in on_disk | planned if self.files.exists(path))

    def without_votes(self, ensemble: str, *models: str) -> str:
        """Advise how `models` stop voting in `ensemble`: by an edit that works on the repository as it is, or out of the planned edit."""
        voting: tuple[Member, ...] = ()
        if (self.files.repository / ensemble / CONFIG_FILE).exists():
            try:
                voting = read_ensemble(self.files.repository, ensemble).members
            except (RepositoryError, OSError):  # edits of single votes read it too
                return APPLY
        gone = [vote for vote in voting if vote.model in models]
        if len({vote.model for vote in gone}) < len(set(models)):
            return f"leave {', '.join(models)} out"
        if len(gone) == len(voting):
            return APPLY
        names = [vote.model for vote in gone]
        # A model that votes at several versions is named with each.
        named = [vote.model if names.count(vote.model) == 1 else f"{vote.model}@{vote.version}" for vote in gone]
        return f"`defensemble ensemble remove {ensemble} {' '.join(named)}`"

    def way_back(self, ensemble: str) -> str:
        """Advise which edit makes `ensemble` whole again: a rollback where an edit of it was recorded."""
        history = self.content(HISTORY_FILE) or b""
        if f'"ensemble": {json.dumps(ensemble)}'.encode() in history:
            return f"go back with `defensemble ensemble rollback {ensemble}`"
        return APPLY

    def leads_out(self, path: str) -> Path | None:
        """Where a link leads on the way to ``path``, where that is outside of the repository."""
        # Not `Path.resolve`, which raises on a link that leads back to itself.
        place, root = (Path(os.path.realpath(folder)) for folder in (self.files.repository / path, self.files.repository))
        return None if place.is_relative_to(root) else place
