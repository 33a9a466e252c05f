"""Profiles: what a network's configuration says on another kind of machine, derived from its ``config.pbtxt``.

A profile is a file ``configs/<profile>.pbtxt`` in a model's folder, which ``defensemble serve --profile`` chooses. It differs from
``config.pbtxt`` in where and by what the network is run, and in nothing that a caller sees. Averaging models and ensembles have none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from defensemble_repository.checks.model import require_valid_configs
from defensemble_repository.errors import ConfigError
from defensemble_repository.filesystem.regular_files import MAX_TEXT_BYTES, read_regular
from defensemble_repository.lock import locked
from defensemble_repository.names import BACKEND, MODEL_FILE, PLAN_FILE, PROFILES, PROFILES_FOLDER
from defensemble_repository.pbtxt import config_from_file, config_from_pbtxt, pbtxt_from_config, schema
from defensemble_repository.profile_digest import matches_digest, write_digest
from defensemble_repository.reader import model_backend, parameter, read_models, served_versions
from defensemble_repository.transaction import check_writable, remove_files, remove_stale_staging, write_files
from defensemble_repository.view import RepositoryView

from .errors import ProfileError

_CPU, _GPU = schema.ModelInstanceGroup.KIND_CPU, schema.ModelInstanceGroup.KIND_GPU


@dataclass(frozen=True)
class EngineCacheOptions:
    """Of the profile ``gpu-ort-tensorrt``: where its engines are kept, on the serving machine, and what building one may take, in MiB."""

    cache_dir: str = "/var/cache/defensemble"
    workspace_mib: int = 1024

    def __post_init__(self) -> None:
        if not PurePosixPath(self.cache_dir).is_absolute():
            raise ProfileError(
                f"the folder of the engines must be absolute, as the serving machine or container has it, got {self.cache_dir!r}"
            )
        if not 1 <= self.workspace_mib <= 1 << 20:
            raise ProfileError(f"the workspace must be 1 to {1 << 20} MiB, got {self.workspace_mib}")


@dataclass(frozen=True)
class ProfileState:
    """One model and one profile: "written", "not written", "edited by hand", "out of date", or what is missing for it."""

    model: str
    profile: str
    state: str


def networks(repository: Path, on_progress: Callable[[str], None] = lambda text: None) -> dict[str, schema.ModelConfig]:
    """The models that profiles are for, by name: of ONNX Runtime's backend, taking ``images``: members, standard networks, fused graphs.

    ``on_progress`` gets a line about each folder that is no model. Raises a ProfileError where there is none, or no such folder.
    """
    if not repository.is_dir():
        what = "is a file" if repository.exists() else "does not exist"
        raise ProfileError(f"model repository {repository} {what}: name a folder that `defensemble export` has written")
    configs = read_models(repository, on_progress)
    named = ((name, config, [tensor.name for tensor in config.input]) for name, config in configs.items())
    found = {name: config for name, config, inputs in named if model_backend(config) == BACKEND and inputs == ["images"]}
    if not found:
        raise ProfileError(
            f"{repository} holds no network of backend {BACKEND} that takes `images`: "
            f"write some with `defensemble export CHECKPOINT... --repository {repository}`"
        )
    return found


def _engine_parameters(config: schema.ModelConfig, digests: Mapping[int, str], settings: EngineCacheOptions) -> dict[str, str]:
    # The names are those of the table in the README of NVIDIA's onnxruntime_backend.
    parameters = {"max_workspace_size_bytes": str(settings.workspace_mib << 20)}
    batch, sizes = config.max_batch_size, "x".join(map(str, config.input[0].dims))
    if batch > 0 and min(config.input[0].dims) > 0:
        # Without them an engine is built anew, while callers wait, for each batch that is larger than all before.
        for bound, count in (("min", 1), ("opt", batch), ("max", batch)):
            parameters[f"trt_profile_{bound}_shapes"] = f"images:{count}x{sizes}"
    if len(digests) == 1:
        # ONNX Runtime names an engine by the names in its graph, not by its weights: two members of one architecture, or two versions of
        # a member, would get each other's engine out of a shared folder. It makes one level of folders itself.
        folder = PurePosixPath(settings.cache_dir) / f"{config.name}-{next(iter(digests.values()))[:16]}"
        parameters |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}
    return parameters


def profile_states(repository: Path, *, on_progress: Callable[[str], None] = lambda text: None) -> list[ProfileState]:
    """The state of each network with each profile, those that somebody has written by hand among them (state "by hand").

    ``on_progress`` gets a line about each folder that is no model.

    Raises:
        ProfileError, ConfigError: see ``networks``.
    """
    found = networks(repository, on_progress)
    profiles = [*PROFILES, *sorted(set(_written(repository, found)) - set(PROFILES))]
    pairs = ((profile, name, config) for profile in profiles for name, config in found.items())
    return [ProfileState(name, profile, _state(repository / name, config, profile)) for profile, name, config in pairs]


def write_profile(
    repository: Path,
    profile: str,
    settings: EngineCacheOptions | None = None,
    *,
    force: bool = False,
    on_progress: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Write ``profile`` for every network of ``repository``, all or none; returns the paths that were written.

    A file that would not change stays. ``on_progress`` gets a line about each network whose engines will not be kept (``gpu-ort-tensorrt``
    keeps those of a network with one served version), and about folders that are no models.

    Raises:
        ProfileError: the profile is unknown, a file that it serves is missing, or, without ``force``, its file was edited by hand.
        ConfigError: a configuration cannot be read, or no Triton would load it.
        ExportError, OSError: it cannot be written; nothing was.
    """
    if profile not in PROFILES:
        raise ProfileError(f"a profile must be one of {', '.join(PROFILES)}, got {profile!r}")
    networks(repository, on_progress)
    check_writable(repository)
    with locked(repository):
        remove_stale_staging(repository)
        found = networks(repository)
        if missing := {name: problem for name, config in found.items() if (problem := _missing(repository / name, config, profile))}:
            raise ProfileError(_missing_text(repository, profile, missing))
        require_valid_configs(RepositoryView(repository), found)
        paths = {name: _path(name, profile) for name in found}
        if not force:
            _check_unedited(repository, paths.values(), "written anew")
        plan = {}
        for name, config in found.items():
            file = repository / paths[name]
            content = pbtxt_from_config(_derived(repository / name, config, profile, settings or EngineCacheOptions()))
            if not file.exists() or read_regular(file) != content:
                plan[paths[name]] = content
        write_files(repository, plan)
        for name, config in found.items() if profile == "gpu-ort-tensorrt" else ():
            versions = served_versions(repository / name, config)
            if len(versions) > 1:
                on_progress(
                    f"{name} serves {len(versions)} versions, whose engines ONNX Runtime would mix up, so they are not kept but built at "
                    "each start; with one version in its version_policy they would be kept"
                )
    return list(plan)


def remove_profile(repository: Path, profile: str, *, force: bool = False) -> list[str]:
    """Remove what ``write_profile`` has written, all or nothing; returns the paths that were removed.

    Raises:
        ProfileError: there is none, or, without ``force``, one was edited by hand.
        ConfigError, ExportError, OSError: a configuration cannot be read, or a file not removed; nothing was.
    """
    networks(repository)
    check_writable(repository)
    with locked(repository):
        remove_stale_staging(repository)
        found = networks(repository)
        paths = [path for name in found if (repository / (path := _path(name, profile))).exists()]
        if not paths:
            known = ", ".join(_written(repository, found)) or "none"
            raise ProfileError(f"no model in {repository} has the profile '{profile}': there are {known}")
        if not force:
            _check_unedited(repository, paths, "removed")
        remove_files(repository, paths)
    return paths


def _path(model: str, profile: str) -> str:
    return f"{model}/{PROFILES_FOLDER}/{profile}.pbtxt"


def _artefact(config: schema.ModelConfig, profile: str) -> str:
    """The name of the file that a profile serves."""
    return PLAN_FILE if profile == "gpu-tensorrt" else config.default_model_filename or MODEL_FILE


def _missing(folder: Path, config: schema.ModelConfig, profile: str) -> str:
    """What a profile lacks in one model; empty where it lacks nothing."""
    name = _artefact(config, profile)
    served = served_versions(folder, config)
    versions = [str(version) for version in served if not (folder / str(version) / name).is_file()]
    if not versions:
        return "" if served else "no version that is served"
    return f"version{'s' if len(versions) > 1 else ''} {', '.join(versions)} {'have' if len(versions) > 1 else 'has'} no {name}"


def _missing_text(repository: Path, profile: str, missing: Mapping[str, str]) -> str:
    mend = (
        f"build what is missing with `defensemble build-engine --repository {repository}` on a machine with that GPU and TensorRT"
        if profile == "gpu-tensorrt"
        else f"export it again, or move that version, or the whole model, out of {repository}"
    )
    listing = "\n".join(f"  {name}: {problem}" for name, problem in missing.items())
    return f"the profile '{profile}' cannot be written, and nothing was:\n{listing}\n{mend}"


def _derived(folder: Path, config: schema.ModelConfig, profile: str, settings: EngineCacheOptions) -> schema.ModelConfig:
    """Derive a profile from a network's ``config.pbtxt``; inputs, outputs, batch, version policy and parameters stay."""
    derived = schema.ModelConfig()
    derived.CopyFrom(config)
    derived.name = folder.name
    digests = {}  # of the file that the profile serves, by version
    for version in served_versions(folder, config):
        known = None if profile == "gpu-tensorrt" else parameter(config, f"sha256.{version}")
        digests[version] = known or hashlib.sha256(read_regular(folder / str(version) / _artefact(config, profile))).hexdigest()
    kind = _CPU if profile == "cpu" else _GPU
    for group in derived.instance_group or [derived.instance_group.add()]:
        group.kind = kind
        group.ClearField("gpus")
    accelerators = derived.optimization.execution_accelerators
    accelerators.ClearField("gpu_execution_accelerator")
    if profile == "gpu-ort-tensorrt":
        engines = accelerators.gpu_execution_accelerator.add(name="tensorrt")
        engines.parameters.update(_engine_parameters(derived, digests, settings))
    elif profile == "gpu-tensorrt":
        derived.backend = "tensorrt"
        derived.ClearField("platform")
        derived.default_model_filename = PLAN_FILE
        derived.optimization.ClearField("execution_accelerators")
        for key in [key for key in derived.parameters if key.startswith("sha256.")]:
            del derived.parameters[key]
        for version, digest in digests.items():
            derived.parameters[f"sha256.{version}"].string_value = digest
    if not accelerators.ListFields():
        derived.optimization.ClearField("execution_accelerators")
    if not derived.optimization.ListFields():
        derived.ClearField("optimization")
    write_digest(derived)
    return derived


def _is_edited(path: Path) -> bool:
    """Whether a profile's file is not as ``write_profile`` or a later export has left it: a comment is an edit too."""
    content = read_regular(path, MAX_TEXT_BYTES)
    try:
        config = config_from_pbtxt(content.decode(errors="replace"), str(path))
    except ConfigError:
        return True
    return not matches_digest(config) or content != pbtxt_from_config(config)


def _check_unedited(repository: Path, paths: Iterable[str], done: str) -> None:
    edited = [str(path) for name in paths if (path := repository / name).exists() and _is_edited(path)]
    if edited:
        raise ProfileError(
            f"edited by hand, or not written by `defensemble profile write`: {', '.join(edited)}; nothing was changed. Keep a copy, or "
            f"pass --force to have it {done}"
        )


def _written(repository: Path, models: Mapping[str, object]) -> list[str]:
    return sorted({path.stem for name in models for path in (repository / name / PROFILES_FOLDER).glob("*.pbtxt")})


def _state(folder: Path, config: schema.ModelConfig, profile: str) -> str:
    path = folder.parent / _path(folder.name, profile)
    if profile not in PROFILES:
        return "by hand" if path.exists() else "not written"
    missing = _missing(folder, config, profile)
    if missing:
        return missing
    if not path.exists():
        return "not written"
    if _is_edited(path):
        return "edited by hand"
    there = config_from_file(path)  # written again with the same settings, would it change?
    return "written" if there == _derived(folder, config, profile, _settings_of(there)) else "out of date"


def _settings_of(config: schema.ModelConfig) -> EngineCacheOptions:
    """The settings that a profile was written with."""
    for engines in config.optimization.execution_accelerators.gpu_execution_accelerator:
        parameters = engines.parameters
        usual = EngineCacheOptions()
        folder, size = parameters.get("trt_engine_cache_path"), parameters.get("max_workspace_size_bytes")
        return EngineCacheOptions(
            str(PurePosixPath(folder).parent) if folder is not None else usual.cache_dir,
            int(size) >> 20 if size is not None else usual.workspace_mib,
        )
    return EngineCacheOptions()
