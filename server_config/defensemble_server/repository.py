"""Read a model repository: which models can be served, and what is wrong with the others."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from defensemble_repository.averaging import is_fused, members_of
from defensemble_repository.checks.inspection import Inspection
from defensemble_repository.checks.repository import check_models, problems_from_findings
from defensemble_repository.filesystem.regular_files import MAX_TEXT_BYTES, read_regular
from defensemble_repository.names import AVERAGING_NAME, PLAN_BACKEND
from defensemble_repository.pbtxt import schema
from defensemble_repository.reader import is_ensemble, model_backend, parameter, versions_by_policy
from defensemble_repository.target import ANY, Target
from defensemble_repository.view import RepositoryView, require_repository

from .errors import NotServableError


@dataclass(frozen=True)
class Model:
    """A model on disk: its configuration (of the chosen profile) and its version folders."""

    name: str
    config: schema.ModelConfig
    versions: tuple[int, ...]

    @property
    def is_ensemble(self) -> bool:
        """Whether this is a Triton ensemble."""
        return is_ensemble(self.config)

    @property
    def is_fused(self) -> bool:
        """Whether it is a fused graph: one graph that computes an ensemble's `probabilities`, with the members in its parameters."""
        return is_fused(self.config)

    @property
    def is_classifier(self) -> bool:
        """Whether it maps `images` to `logits`, as members do."""
        tensors = [(tensor.name, tensor.data_type) for tensor in (*self.config.input, *self.config.output)]
        batches = bool(self.config.max_batch_size > 0)
        return batches and tensors == [("images", schema.TYPE_FP32), ("logits", schema.TYPE_FP32)] and len(self.config.input) == 1

    @property
    def backend(self) -> str:
        """The backend that runs it; empty for an ensemble."""
        return model_backend(self.config)

    @property
    def members(self) -> list[tuple[str, int]]:
        """(model, version) of each step of an ensemble that reads an input of the ensemble, in order."""
        return members_of(self.config)

    @property
    def served_versions(self) -> tuple[int, ...]:
        """The versions that Triton loads by `version_policy`; without one, only the newest."""
        return tuple(versions_by_policy(self.versions, self.config))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of its input images, (C, H, W), -1 for any size; empty if its input is not images."""
        inputs = self.config.input
        if len(inputs) != 1 or inputs[0].name != "images":
            return ()
        dims = tuple(inputs[0].dims)
        return dims if self.config.max_batch_size > 0 else dims[1:]

    @property
    def needs_gpu(self) -> bool:
        """Whether it needs a GPU: for its instances, for TensorRT in ONNX Runtime, or as a TensorRT plan."""
        kinds = [group.kind for group in self.config.instance_group]
        accelerators = self.config.optimization.execution_accelerators.gpu_execution_accelerator
        return bool(self.backend == PLAN_BACKEND or schema.ModelInstanceGroup.KIND_GPU in kinds or len(accelerators))

    def parameter(self, key: str) -> str | None:
        """Return a value of the configuration's `parameters`, or None."""
        return parameter(self.config, key)


@dataclass(frozen=True)
class Repository:
    """A folder of models.

    Args:
        path: The folder.
        models: The models that can be served, by name.
        problems: For each other model, what is wrong with it.
        remarks: Findings that do not prevent serving.
    """

    path: Path
    models: Mapping[str, Model]
    problems: Mapping[str, str]
    remarks: tuple[str, ...] = ()

    @property
    def configs(self) -> dict[str, schema.ModelConfig]:
        """The configurations of the models that can be served."""
        return {name: model.config for name, model in self.models.items()}

    @property
    def ensembles(self) -> list[Model]:
        """The ensembles that can be served."""
        return [model for model in self.models.values() if model.is_ensemble]

    @property
    def two_averaging_models(self) -> list[str]:
        """Names of the ensembles that end in two averaging models: a cancelled call fails in both, which can crash Triton."""
        return [
            model.name
            for model in self.ensembles
            if sum(AVERAGING_NAME.fullmatch(step.model_name) is not None for step in model.config.ensemble_scheduling.step) > 1
        ]

    def without(self, problems: Mapping[str, str]) -> Repository:
        """Return a copy without the models in `problems`, and without the ensembles that use them."""
        models = {name: model for name, model in self.models.items() if name not in problems}
        all_problems = {**self.problems, **problems}
        while broken := _broken_ensembles(models, all_problems):
            all_problems |= broken
            models = {name: model for name, model in models.items() if name not in broken}
        return dataclasses.replace(self, models=models, problems=all_problems)

    def without_unused_averages(self) -> tuple[Repository, list[str]]:
        """Return a copy without averaging models that no ensemble uses (edits keep them for a rollback), and their names."""
        used = {step.model_name for model in self.ensembles for step in model.config.ensemble_scheduling.step}
        unused = [name for name in self.models if AVERAGING_NAME.fullmatch(name) and name not in used]
        kept = {name: model for name, model in self.models.items() if name not in unused}
        return dataclasses.replace(self, models=kept), unused

    def threads_per_member(self, cores: int) -> int:
        """Return the threads per member with which the members of the largest ensemble use `cores` cores together."""
        largest = max((len(model.members) for model in self.ensembles), default=1)
        return max(1, cores // max(1, largest))


def read_repository(path: Path, *, profile: str | None = None, target: Target = ANY) -> Repository:
    """Read the configuration of every model, and run the checks of `defensemble ensemble check` that need no graph.

    Args:
        path: The folder.
        profile: Use `configs/<profile>.pbtxt` of the models that have it.
        target: The Triton that will serve it.

    Raises:
        NotServableError: `path` is not a folder, has no model folder, or contains a dangling link.
    """
    require_repository(path, NotServableError)
    if not any(entry.is_dir() for entry in path.iterdir()):
        raise NotServableError(f"model repository {path} is empty: add models with `defensemble export CHECKPOINT... --repository {path}`")
    inspection = Inspection(RepositoryView(path), target, profile=profile, plans=False)
    links = inspection.files.dangling_links()
    models = {}
    for name in itertools.chain(*check_models(inspection)):
        config = inspection.config(name)
        assert config is not None
        models[name] = Model(name, config, tuple(inspection.versions(name)))
    if links:  # Triton would not start
        raise NotServableError("; ".join(str(finding) for finding in inspection.findings if finding.model in links))
    remarks = tuple(str(finding) for finding in inspection.findings if not finding.is_error)
    return Repository(path, models, {}, remarks).without(problems_from_findings(inspection.findings))


def read_model(folder: Path, profile: str | None) -> Model:
    """Read a model with its configuration.

    Args:
        folder: Folder of the model.
        profile: Use this profile if the model has it; None: `config.pbtxt`.

    Raises:
        NotServableError: The configuration is missing or cannot be read.
    """
    inspection = Inspection(RepositoryView(folder.parent), profile=profile)
    config = inspection.config(folder.name) if inspection.has(folder.name) else None
    if config is None:
        raise NotServableError("; ".join(map(str, inspection.findings)) or f"{folder} is not a model: it has no configuration")
    return Model(folder.name, config, tuple(inspection.versions(folder.name)))


def format_problems(problems: Mapping[str, str]) -> str:
    """Format problems by model, one per line."""
    return "\n".join(f"  {name}: {text}" for name, text in problems.items())


def config_path(folder: Path, profile: str | None) -> Path:
    """Return the file that configures a model under `profile`."""
    return folder.parent / Inspection(RepositoryView(folder.parent), profile=profile).config_path(folder.name)


def declares_ensemble(folder: Path, profile: str | None) -> bool:
    """Return whether a configuration, which may be invalid, declares an ensemble."""
    try:
        text = read_regular(config_path(folder, profile), MAX_TEXT_BYTES)
    except OSError:
        return False
    text = re.sub(rb"#[^\n]*", b"", text)
    return re.search(rb"\b(platform\s*:\s*[\"']ensemble[\"']|ensemble_scheduling\b)", text) is not None


def without_version(folder: Path, model: Model, version: int) -> str:
    """Return how to remove one bad version: Triton loads all versions of a model or none."""
    others = [str(other) for other in model.served_versions if other != version]
    move = f"move {folder / str(version)} out of the repository"
    if not others:
        return f"{move} and export the model again (--replace)"
    return f"this also stops version {', '.join(others)}, because Triton loads all versions or none: {move}"


def _broken_ensembles(models: Mapping[str, Model], problems: Mapping[str, str]) -> dict[str, str]:
    """Return the ensembles among `models` with a step that cannot be served, and why."""
    return {
        name: f"its step '{step.model_name}' cannot be served: {problems.get(step.model_name, 'it is not in the repository')}"
        for name, model in models.items()
        if model.is_ensemble
        for step in reversed(model.config.ensemble_scheduling.step)
        if step.model_name not in models
    }
