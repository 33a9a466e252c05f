"""What lies in a model repository: which models can be served, and what is wrong with the others."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from google.protobuf import text_format

from defensemble_repository.filesystem.regular_files import LARGEST_TEXT, check_regular, open_regular, read_regular
from defensemble_repository.names import AVERAGING_NAME
from defensemble_repository.pbtxt import schema

from ._errors import NotServableError

CONFIG_FILE = "config.pbtxt"
# In a model's folder: a configuration for each profile that differs from ``config.pbtxt``.
PROFILES_FOLDER = "configs"
# The embedded runtime answers for this backend alone.
BACKEND = "onnxruntime"
# Serves TensorRT plans.
PLAN_BACKEND = "tensorrt"
# What the members' votes are averaged as.
AVERAGES = ("probabilities", "logits")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_LARGEST_VERSION = 2**63 - 1


@dataclass(frozen=True)
class Model:
    """One model as it lies on disk: its configuration (of the chosen profile) and its version folders."""

    name: str
    config: schema.ModelConfig
    versions: tuple[int, ...]

    @property
    def is_ensemble(self) -> bool:
        """Whether this is one of Triton's ensembles."""
        return bool(self.config.platform == "ensemble")

    @property
    def is_fused(self) -> bool:
        """Whether it gives an ensemble's ``probabilities`` out of one graph, and its parameters say whose votes they average."""
        inputs = [(tensor.name, tensor.data_type) for tensor in self.config.input]
        gives = any(tensor.name == "probabilities" for tensor in self.config.output)
        told = all(self.parameter(key) is not None for key in ("average", "weights", "members"))
        return not self.is_ensemble and inputs == [("images", schema.TYPE_FP32)] and gives and told

    @property
    def is_classifier(self) -> bool:
        """Whether it takes ``images`` and gives ``logits``, as members and standard networks do."""
        tensors = [(tensor.name, tensor.data_type) for tensor in (*self.config.input, *self.config.output)]
        batches = bool(self.config.max_batch_size > 0)
        return batches and tensors == [("images", schema.TYPE_FP32), ("logits", schema.TYPE_FP32)] and len(self.config.input) == 1

    @property
    def votes(self) -> list[tuple[str, int]]:
        """Of an ensemble: (model, version) of the steps that read an input of the ensemble, in order."""
        inputs = {tensor.name for tensor in self.config.input}
        steps = self.config.ensemble_scheduling.step
        return [(step.model_name, step.model_version) for step in steps if inputs & set(step.input_map.values())]

    @property
    def served_versions(self) -> tuple[int, ...]:
        """The versions that Triton loads: what ``version_policy`` says, the newest alone where it says nothing."""
        policy = self.config.version_policy
        if policy.HasField("all"):
            return self.versions
        if policy.HasField("specific"):
            return tuple(version for version in self.versions if version in policy.specific.versions)
        return self.versions[-max(1, policy.latest.num_versions) :]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The size of an image that it takes, (C, H, W), one below 0 where any will do; empty where it takes something else."""
        inputs = self.config.input
        if len(inputs) != 1 or inputs[0].name != "images":
            return ()
        dims = tuple(inputs[0].dims)
        return dims if self.config.max_batch_size > 0 else dims[1:]

    @property
    def file(self) -> str:
        """The name of the file in each version's folder that is served."""
        usual = "model.plan" if self.config.backend == PLAN_BACKEND else "model.onnx"
        return str(self.config.default_model_filename) or usual

    @property
    def wants_gpu(self) -> bool:
        """Whether it asks for a GPU: by its instances, by TensorRT in ONNX Runtime, or by being a TensorRT plan."""
        kinds = [group.kind for group in self.config.instance_group]
        accelerators = self.config.optimization.execution_accelerators.gpu_execution_accelerator
        return bool(self.config.backend == PLAN_BACKEND or schema.ModelInstanceGroup.KIND_GPU in kinds or len(accelerators))

    def parameter(self, key: str) -> str | None:
        """A value of the configuration's ``parameters``, None where there is none."""
        return self.config.parameters[key].string_value if key in self.config.parameters else None


@dataclass(frozen=True)
class Repository:
    """A folder of models: those that can be served, and for the others a text that says what is wrong."""

    path: Path
    models: Mapping[str, Model]
    problems: Mapping[str, str]

    @property
    def ensembles(self) -> list[Model]:
        """The ensembles that can be served."""
        return [model for model in self.models.values() if model.is_ensemble]

    @property
    def two_averaging_models(self) -> list[str]:
        """The names of the ensembles that end in two averaging models: both fail when a call is cancelled, and that can crash Triton."""
        return [
            model.name
            for model in self.ensembles
            if sum(AVERAGING_NAME.fullmatch(step.model_name) is not None for step in model.config.ensemble_scheduling.step) > 1
        ]

    def without(self, problems: Mapping[str, str]) -> Repository:
        """The same without the models that ``problems`` names, and without the ensembles that need them."""
        models = {name: model for name, model in self.models.items() if name not in problems}
        all_problems = {**self.problems, **problems}
        _drop_broken_ensembles(models, all_problems)
        return Repository(self.path, models, all_problems)

    def without_unused_averages(self) -> tuple[Repository, list[str]]:
        """The same without averaging models that no ensemble runs, which edits leave behind for a rollback; and the names of these."""
        used = {step.model_name for model in self.ensembles for step in model.config.ensemble_scheduling.step}
        unused = [name for name in self.models if AVERAGING_NAME.fullmatch(name) and name not in used]
        kept = {name: model for name, model in self.models.items() if name not in unused}
        return Repository(self.path, kept, self.problems), unused

    def threads_per_member(self, cores: int) -> int:
        """How many threads each member may take so that the members of the largest ensemble share the machine; all where there is none."""
        largest = max((len(model.votes) for model in self.ensembles), default=1)
        return max(1, cores // max(1, largest))


def read_repository(path: Path, *, profile: str | None = None, only_backend: str | None = None) -> Repository:
    """Read every model's configuration and check its files against the digests that it carries.

    ``profile`` takes ``configs/<profile>.pbtxt`` where a model has it; ``only_backend`` refuses models of other backends.

    Raises:
        NotServableError: ``path`` is not a folder, or has no folder that could be a model.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise NotServableError(f"model repository {path} {what}: name a folder that `defensemble export` has written")
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    if not folders:
        raise NotServableError(
            f"model repository {path} is empty: write models into it with `defensemble export CHECKPOINT... --repository {path}`"
        )
    models, problems = {}, {}
    for folder in folders:
        try:
            for entry in (*folder.glob("*"), *folder.glob("*/*")):
                check_regular(entry)  # Triton would wait for a writer, of labels as well as of a graph
            model = read_model(folder, profile)
            if not model.is_ensemble:
                _check_files(folder, model, only_backend, config_path(folder, profile))
            if model.is_fused:
                serves_what_was_fused(model, {})  # raises where its parameters describe no average of members
            models[folder.name] = model
        except NotServableError as error:
            problems[_printable(folder.name)] = str(error)
        except OSError as error:
            problems[_printable(folder.name)] = f"{error.filename}: {error.strerror}"
    _drop_broken_ensembles(models, problems)
    return Repository(path, models, problems)


def _printable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def read_model(folder: Path, profile: str | None) -> Model:
    """Read a model's configuration, of ``profile`` where the model has it; its files are not looked at.

    Raises:
        NotServableError: it is no model, or its configuration is not valid.
        OSError: it cannot be read.
    """
    path = config_path(folder, profile)
    try:
        config = text_format.Parse(read_regular(path, LARGEST_TEXT).decode(), schema.ModelConfig())
    except FileNotFoundError as error:
        raise NotServableError(f"stray folder: it holds no {CONFIG_FILE}, so it is no model; move it out of the repository") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise NotServableError(f"{path}: not a valid model configuration: {error}") from error
    if not _NAME.fullmatch(folder.name):
        raise NotServableError(
            "a model's folder is named by letters, digits, '_', '.' and '-', and begins with a letter or digit: rename it"
        )
    if config.name and config.name != folder.name:
        raise NotServableError(f"{path} says name: \"{config.name}\", but the folder is called '{folder.name}': make them equal")
    file = config.default_model_filename
    if file and (file != PurePosixPath(file).name or file == ".."):
        raise NotServableError(
            f"{path} says default_model_filename: {file!r}, expected the plain name of a file in the version's "
            "folder, such as model.onnx: mend that line, or take it out"
        )
    versions = tuple(sorted(int(entry.name) for entry in folder.iterdir() if entry.is_dir() and re.fullmatch("[1-9][0-9]*", entry.name)))
    if not versions:
        raise NotServableError(f"{folder} has no version folder: it needs one named 1, 2, ...")
    if versions[-1] > _LARGEST_VERSION:
        raise NotServableError(f"version folder {versions[-1]} is larger than Triton counts: rename it to 1, 2, ...")
    return Model(folder.name, config, versions)


def config_path(folder: Path, profile: str | None) -> Path:
    """The file that configures a model under ``profile``."""
    path = folder / PROFILES_FOLDER / f"{profile}.pbtxt"
    return path if profile is not None and path.exists() else folder / CONFIG_FILE


def _check_files(folder: Path, model: Model, only_backend: str | None, config: Path) -> None:
    if only_backend is not None and model.config.backend != only_backend:
        got = model.config.backend or model.config.platform or "none"
        raise NotServableError(
            f"backend '{got}' is not in this runtime, which has '{only_backend}' alone: serve it with --runtime docker or path"
        )
    for version in model.served_versions:
        file = folder / str(version) / model.file
        expected = model.parameter(f"sha256.{version}")
        if expected is None:
            continue
        if not file.exists():
            raise NotServableError(f"version {version}: {file} is missing: {without_version(folder, model, version)}")
        got = file_digest(file)
        if got != expected:
            raise NotServableError(
                f"version {version}: {file} has SHA-256 {got[:16]}..., {config} says {expected[:16]}...: the file was changed or "
                f"damaged after it was exported; {without_version(folder, model, version)}; or, if you changed it on purpose, write the "
                "new digest into the configuration"
            )


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open_regular(path) as file:  # a plan can be hundreds of megabytes
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def without_version(folder: Path, model: Model, version: int) -> str:
    """How to be rid of one bad version: Triton loads all of a model, unchecked, and nothing of it where one version fails."""
    others = [str(other) for other in model.served_versions if other != version]
    move = f"move {folder / str(version)} out of the repository"
    if not others:
        return f"{move} and export the model again (--replace)"
    return f"it takes version {', '.join(others)} along, for Triton loads them together: {move}"


def _drop_broken_ensembles(models: dict[str, Model], problems: dict[str, str]) -> None:
    for name, model in list(models.items()):
        if not model.is_ensemble:
            continue
        for step in model.config.ensemble_scheduling.step:
            member = models.get(step.model_name)
            served = [] if member is None else list(member.served_versions)
            if member is None:
                why = problems.get(step.model_name)
                why = "is not in the repository" if why is None else f"cannot be served: {why}"
                problems[name] = f"its step '{step.model_name}' {why}"
            elif step.model_version > 0 and step.model_version not in served:
                problems[name] = f"its step '{step.model_name}' pins version {step.model_version}, served are {served}"
            else:
                continue
            del models[name]
            break
        else:
            try:
                averaging_of(model, models)
            except NotServableError as error:
                problems[name] = str(error)
                del models[name]


def averaging_of(ensemble: Model, models: Mapping[str, Model]) -> tuple[str, list[float]] | None:
    """What an ensemble's ``probabilities`` are: (average, weights in the order of its votes); None where no configuration says it.

    Raises:
        NotServableError: what a configuration says is no average, or not one positive number for each vote.
    """
    for step in ensemble.config.ensemble_scheduling.step:
        model = models.get(step.model_name)
        if "probabilities" not in step.output_map.values() or model is None:
            continue
        if model.parameter("average") is not None and model.parameter("weights") is not None:
            return _average_and_weights(model, len(ensemble.votes))
    return None


def fused_averaging(model: Model) -> tuple[str, list[float], list[tuple[str, int]]]:
    """What a fused graph's ``probabilities`` are: (average, weights, and in their order the votes as model and version).

    Raises:
        NotServableError: what its parameters say is no average, no list of ``NAME@VERSION``, or not one positive number for each vote.
    """
    text = model.parameter("members") or ""
    try:
        votes = [(name, int(version)) for name, _, version in (vote.rpartition("@") for vote in json.loads(text))]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise NotServableError(f"parameter members of '{model.name}' is no JSON list of \"NAME@VERSION\", got {text[:80]!r}") from error
    return *_average_and_weights(model, len(votes)), votes


def serves_what_was_fused(model: Model, models: Mapping[str, Model]) -> bool:
    """Whether the files of a fused graph's members, as its parameter ``member_digests`` has them, are those served under their names.

    Without that parameter their names are believed.

    Raises:
        NotServableError: the parameter is no JSON list with one text for each vote.
    """
    votes, text = fused_averaging(model)[2], model.parameter("member_digests")
    if text is None:
        return True
    try:
        digests = json.loads(text)
    except (ValueError, RecursionError):
        digests = None
    if not isinstance(digests, list) or len(digests) != len(votes):
        raise NotServableError(f"parameter member_digests of '{model.name}' must be a JSON list of {len(votes)} texts, got {text[:80]!r}")
    served = [models[name].parameter(f"sha256.{version}") if name in models else None for name, version in votes]
    return served == digests


def _average_and_weights(model: Model, votes: int) -> tuple[str, list[float]]:
    average, text = model.parameter("average") or "", model.parameter("weights") or ""
    if average not in AVERAGES:
        raise NotServableError(f"parameter average of '{model.name}' must be one of {', '.join(AVERAGES)}, got {average[:80]!r}")
    try:
        weights = [float(weight) for weight in json.loads(text)]
    except (ValueError, TypeError, RecursionError) as error:
        raise NotServableError(f"parameter weights of '{model.name}' is no JSON list of numbers, got {text[:80]!r}") from error
    if len(weights) != votes or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise NotServableError(f"parameter weights of '{model.name}' must be {votes} numbers above 0, got {text[:80]}")
    return average, weights
