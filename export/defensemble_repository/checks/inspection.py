"""The inspection of a repository: it reads files once and collects findings with their file and line."""

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
from ..pbtxt import MAX_REASON_LENGTH, config_from_pbtxt, schema
from ..reader import MAX_VERSION, checked_config, read_ensemble
from ..target import ANY, Target
from ..texts import shortened
from ..view import RepositoryView
from .finding import ConfigProblem, FieldLocator, Finding, Step

T = TypeVar("T")
APPLY_ADVICE = "declare the members with `defensemble ensemble apply FILE`"


@lru_cache(maxsize=64)
def _field_locator(text: str) -> FieldLocator:
    """Return the locator for a text. It is cached, because each of possibly hundreds of findings needs it."""
    return FieldLocator(text)


@dataclass(eq=False)
class Inspection:
    """The inspection of a repository for one Triton server. Problems become findings, not exceptions.

    Args:
        files: The repository.
        target: The Triton server that will serve it.
        profile: Check the configuration of this profile instead of `config.pbtxt`, for each model that has one.
        all_profiles: Compare every profile of a model with its `config.pbtxt`.
        plans: Compare TensorRT plans with their manifests. A server does this itself, for its own machine.
        for_edit: Whether an edit will write ensembles into the repository.
        is_generated: Returns whether a model file is the averaging graph of an ensemble with so many classes. None: open no graph.
        check_ensemble: Called for each ensemble with its name, its configuration, the configurations of its models, and whether they
            have an error.

    Example:
        inspection = Inspection(RepositoryView(Path("model_repository")), EMBEDDED)
        check_models(inspection)
        print(*inspection.findings)
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
    _blocked_model: str = field(default="", init=False)

    def add_finding(
        self,
        model: str,
        text: str,
        path: str | None = None,
        *field_path: Step,
        line: int | None = None,
        is_error: bool = True,
        unchecked: bool = False,
    ) -> None:
        """Add a finding, unless there is an equal one.

        Args:
            model: The model that it is about.
            text: The problem, what is expected and how to fix it.
            path: The file, relative to the repository.
            field_path: The path to the field in that file, which determines the line.
            line: The line (from 1) of a file that is not a configuration.
            is_error: False for a remark.
            unchecked: Whether files of the model were not checked.
        """
        if field_path and path is not None:
            content = self.content(path)
            line = None if content is None else _field_locator(content.decode(errors="replace")).line_of(*field_path)
        file = None if path is None else self.files.repository / path
        finding = Finding(model, shortened(text), file, line, is_error, self._blocked_model or model, unchecked)
        if finding not in self.findings:
            self.findings.append(finding)

    def add_problem(self, model: str, problem: ConfigProblem, path: str) -> None:
        """Add a problem of the configuration at `path` of a model."""
        self.add_finding(model, problem.text, path, *problem.path)

    @contextmanager
    def blocking(self, model: str) -> Iterator[None]:
        """Record that the findings in this context prevent `model` from being served."""
        previous, self._blocked_model = self._blocked_model, model
        try:
            yield
        finally:
            self._blocked_model = previous

    def config_path(self, model: str) -> str:
        """Return the path of the configuration of a model, relative to the repository: that of the profile, or `config.pbtxt`."""
        path = f"{model}/{PROFILES_FOLDER}/{self.profile}.pbtxt"
        has_profile = self.profile is not None and (self.files.exists(path) or (self.files.repository / path).exists())
        return path if has_profile else f"{model}/{CONFIG_FILE}"

    def has_error(self, model: str, path: str | None = None) -> bool:
        """Return whether there is an error about a model, or only about one of its files, `path`."""
        file = None if path is None else self.files.repository / path
        return any(entry.is_error and entry.model == model and (path is None or entry.file == file) for entry in self.findings)

    def content(self, path: str) -> bytes | None:
        """Return the bytes of a file, or None if it does not exist, or cannot be read, which adds a finding."""
        return self._read(self.files.content, path)

    def digest(self, path: str) -> str | None:
        """Return the SHA-256 of a file, or None, as `content` does."""
        return self._read(self.files.digest, path)

    def has(self, model: str) -> bool:
        """Return whether a model has a valid name and a configuration."""
        return MODEL_NAME.fullmatch(model) is not None and self.exists(f"{model}/{CONFIG_FILE}") is True

    def exists(self, path: str) -> bool | None:
        """Return whether a file exists, or None if it is a FIFO or a device, or is not accessible, which adds a finding."""
        return self._read(self.files.exists, path)

    def _read(self, read: Callable[[str], T], path: str) -> T | None:
        try:
            return read(path)
        except OSError as error:
            self.add_finding(
                path.partition("/")[0], f"cannot be read: {error.strerror}. Correct its permissions, or put the file back.", path
            )
            return None

    def config(self, model: str) -> schema.ModelConfig | None:
        """Return the configuration of a model that `has` one, or None if it is not valid, which adds a finding."""
        if model not in self._configs:
            with self.blocking(model):
                self._configs[model] = self._read_config(model)
        return self._configs[model]

    def _read_config(self, model: str) -> schema.ModelConfig | None:
        path = self.config_path(model)
        config = self.parse_config(model, path)
        if config is None:
            return None
        self._check_unknown_fields(model, path)
        try:
            return checked_config(config, self.files.repository / model)
        except ConfigError:
            if config.name not in ("", model):
                self.add_finding(
                    model, f"has name: \"{config.name}\"; expected the name of its folder, '{model}'. Make them equal.", path, "name"
                )
            else:
                file, expected = config.default_model_filename, "expected the plain name of a file in the version's folder"
                text = f"has default_model_filename: {file!r}; {expected}. Correct or remove the line."
                self.add_finding(model, text, path, "default_model_filename")
            return None

    def _check_unknown_fields(self, model: str, path: str) -> None:
        fields = self.target.unknown_fields
        content = self.content(path) if fields else None
        if content is None:
            return
        locator = _field_locator(content.decode(errors="replace"))
        for field_path in fields:
            # The text is searched, because Triton's parser rejects the field with any value, and a message does not show a value of 0.
            if locator.has(*field_path):
                text = f"field {'.'.join(field_path)} is unknown to {self.target}, which cannot read this file. Remove the field."
                self.add_finding(model, text, path, *field_path)

    def parse_config(self, model: str, path: str) -> schema.ModelConfig | None:
        """Return the configuration at `path`, or None if it does not exist, or is not valid, which adds a finding with the line."""
        content = self.content(path)
        if content is None:
            return None
        try:
            return config_from_pbtxt(content.decode(errors="replace"), str(self.files.repository / path))
        except ConfigError as error:
            cause = error.__cause__
            line = cause.GetLine() if isinstance(cause, text_format.ParseError) else None
            self.add_finding(
                model, f"not a valid model configuration: {shortened(str(cause), MAX_REASON_LENGTH)}. Correct the line.", path, line=line
            )
            return None

    def versions(self, model: str) -> list[int]:
        """Return the versions of a model, in ascending order. If the folder cannot be listed, add a finding and return none."""
        try:
            versions = self.files.versions(model)
        except OSError as error:
            self.add_finding(model, f"its folder cannot be listed: {error.strerror}. Correct its permissions.", model)
            return []
        for version in versions:
            if version > MAX_VERSION:
                self.add_finding(
                    model, f"the largest version of Triton is {MAX_VERSION}. Rename this folder to a lower number.", f"{model}/{version}"
                )
        return versions

    def profiles(self, model: str) -> list[str]:
        """Return the paths of a model's profiles to compare with its `config.pbtxt`, or none without `all_profiles`."""
        if not self.all_profiles:
            return []
        folder = f"{model}/{PROFILES_FOLDER}"
        on_disk = {path.relative_to(self.files.repository).as_posix() for path in (self.files.repository / folder).glob("*.pbtxt")}
        planned = {path for path in self.files.planned if path.startswith(f"{folder}/") and path.endswith(".pbtxt")}
        return sorted(path for path in on_disk | planned if self.files.exists(path))

    def removal_advice(self, ensemble: str, *models: str) -> str:
        """Return the advice how to remove `models` from `ensemble`: by a command, or by changing the planned edit."""
        members: tuple[Member, ...] = ()
        if (self.files.repository / ensemble / CONFIG_FILE).exists():
            try:
                members = read_ensemble(self.files.repository, ensemble).members
            except (RepositoryError, OSError):  # Commands that edit single members fail too.
                return APPLY_ADVICE
        removed = [member for member in members if member.model in models]
        if len({member.model for member in removed}) < len(set(models)):
            return f"omit {', '.join(models)}"
        if len(removed) == len(members):
            return APPLY_ADVICE
        names = [member.model for member in removed]
        # A model that is a member with several versions is listed with each version.
        arguments = [member.model if names.count(member.model) == 1 else f"{member.model}@{member.version}" for member in removed]
        return f"remove it with `defensemble ensemble remove {ensemble} {' '.join(arguments)}`"

    def recovery_advice(self, ensemble: str) -> str:
        """Return the advice how to restore `ensemble`: a rollback if its edits are recorded."""
        history = self.content(HISTORY_FILE) or b""
        if f'"ensemble": {json.dumps(ensemble)}'.encode() in history:
            return f"restore it with `defensemble ensemble rollback {ensemble}`"
        return APPLY_ADVICE

    def external_target(self, path: str) -> Path | None:
        """Return the resolved target of `path` if a link leads out of the repository, else None."""
        # Not `Path.resolve`, which raises an error for a link to itself.
        target, root = (Path(os.path.realpath(folder)) for folder in (self.files.repository / path, self.files.repository))
        return None if target.is_relative_to(root) else target
