"""Serving profiles: variants of a network's `config.pbtxt` for other kinds of machines.

A profile is a file `configs/<profile>.pbtxt` in the folder of a model; `defensemble serve --profile` selects it. It changes on which
device and with which backend the network runs, and nothing that a caller sees. Averaging models and ensembles have no profiles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from defensemble_ops.library import LIBRARY_NAME
from defensemble_repository.checks.model import require_valid_configs
from defensemble_repository.errors import ConfigError
from defensemble_repository.filesystem.regular_files import MAX_TEXT_BYTES, read_regular
from defensemble_repository.lock import locked
from defensemble_repository.names import BACKEND, MODEL_FILE, PLAN_FILE, PROFILES, PROFILES_FOLDER
from defensemble_repository.pbtxt import config_from_file, config_from_pbtxt, pbtxt_from_config, schema
from defensemble_repository.profile_digest import matches_digest, write_digest
from defensemble_repository.reader import model_backend, parameter, read_models, served_versions
from defensemble_repository.transaction import check_writable, remove_files, remove_stale_staging, write_files
from defensemble_repository.view import RepositoryView, require_repository

from .errors import ProfileError

_OWN_LIBRARY = PurePosixPath(LIBRARY_NAME).stem
_CPU, _GPU = schema.ModelInstanceGroup.KIND_CPU, schema.ModelInstanceGroup.KIND_GPU


@dataclass(frozen=True)
class EngineCacheOptions:
    """Settings of the profile `gpu-ort-tensorrt`, in which ONNX Runtime builds TensorRT engines.

    Args:
        cache_dir: Absolute folder of the engines, on the serving machine or in its container.
        workspace_mib: GPU memory that a build may use, 1 to 1048576 MiB.

    Raises:
        ProfileError: The folder is not absolute, or the size is out of range.

    Example:
        >>> write_profile(Path("model_repository"), "gpu-ort-tensorrt", EngineCacheOptions("/engines", 2048))
    """

    cache_dir: str = "/var/cache/defensemble"
    workspace_mib: int = 1024

    def __post_init__(self) -> None:
        if not PurePosixPath(self.cache_dir).is_absolute():
            raise ProfileError(
                f"cache_dir is {self.cache_dir!r}; expected an absolute folder on the serving machine or in its container, such as /engines"
            )
        if not 1 <= self.workspace_mib <= 1 << 20:
            raise ProfileError(f"workspace_mib is {self.workspace_mib}; expected 1 to {1 << 20} MiB")


@dataclass(frozen=True)
class ProfileState:
    """The state of one profile of one model: "written", "not written", "edited by hand", "by hand", "out of date", or what is missing."""

    model: str
    profile: str
    state: str


def find_networks(repository: Path, on_progress: Callable[[str], None] = lambda text: None) -> dict[str, schema.ModelConfig]:
    """Return the configurations of the models that can have profiles: those of the ONNX Runtime backend with the input `images`.

    These are members, standard networks and fused graphs.

    Args:
        repository: The model repository.
        on_progress: Called with a line about each folder that is not a model.

    Raises:
        ProfileError: The repository does not exist, or has no such model.
        ConfigError: A configuration cannot be read.
    """
    require_repository(repository, ProfileError)
    networks = {
        name: config
        for name, config in read_models(repository, on_progress).items()
        if model_backend(config) == BACKEND and [tensor.name for tensor in config.input] == ["images"]
    }
    if not networks:
        raise ProfileError(
            f"{repository} has no network of the backend {BACKEND} with the input `images`: "
            f"export one with `defensemble export CHECKPOINT... --repository {repository}`"
        )
    return networks


def _engine_parameters(config: schema.ModelConfig, digests: Mapping[int, str], settings: EngineCacheOptions) -> dict[str, str]:
    # Names as in the table in the README of NVIDIA's onnxruntime_backend.
    parameters = {"max_workspace_size_bytes": str(settings.workspace_mib << 20)}
    batch, sizes = config.max_batch_size, "x".join(map(str, config.input[0].dims))
    if batch > 0 and min(config.input[0].dims) > 0:
        # Without these shapes ONNX Runtime rebuilds the engine for each batch that is larger than all earlier ones, while callers wait.
        for bound, count in (("min", 1), ("opt", batch), ("max", batch)):
            parameters[f"trt_profile_{bound}_shapes"] = f"images:{count}x{sizes}"
    if len(digests) == 1:
        # ONNX Runtime names an engine after the names in its graph, not its weights. In a shared folder, two members of one architecture
        # or two versions of a member would load each other's engine. ONNX Runtime creates one level of folders itself.
        folder = PurePosixPath(settings.cache_dir) / f"{config.name}-{next(iter(digests.values()))[:16]}"
        parameters |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}
    return parameters


def profile_states(repository: Path, *, on_progress: Callable[[str], None] = lambda text: None) -> list[ProfileState]:
    """Return the state of each profile of each network, including profiles that were written by hand (state "by hand").

    Args:
        repository: The model repository.
        on_progress: Called with a line about each folder that is not a model.

    Raises:
        ProfileError: The repository does not exist, or has no network.
        ConfigError: A configuration cannot be read.
    """
    configs = find_networks(repository, on_progress)
    profiles = [*PROFILES, *sorted(set(_written_profiles(repository, configs)) - set(PROFILES))]
    pairs = ((profile, name, config) for profile in profiles for name, config in configs.items())
    return [ProfileState(name, profile, _state(repository / name, config, profile)) for profile, name, config in pairs]


def write_profile(
    repository: Path,
    profile: str,
    settings: EngineCacheOptions | None = None,
    *,
    op_library: str | None = None,
    force: bool = False,
    on_progress: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Write a profile for every network of a repository, in one transaction. Unchanged files are not written.

    Args:
        repository: The model repository.
        profile: "cpu", "gpu", "gpu-ort-tensorrt" or "gpu-tensorrt".
        settings: Settings of `gpu-ort-tensorrt`. None: the defaults.
        op_library: For the profile `cpu` in NVIDIA's container: the absolute path there of the library of the mask-aware operator
            (`defensemble.ops.library_path`), which its backend then loads for mask-aware networks. Not run in that container. None: the
            backend of this project, which has the library by itself.
        force: Overwrite files that were edited by hand.
        on_progress: Called with a line about each network whose engines cannot be cached (`gpu-ort-tensorrt` caches the engines of
            networks with one served version), and about each folder that is not a model.

    Returns:
        The paths written, relative to `repository`.

    Raises:
        ProfileError: The profile is unknown, a file that it serves is missing, its file was edited by hand and `force` is False, or
            `op_library` is for another profile, not absolute, or of no use, because no network is mask-aware.
        ConfigError: A configuration cannot be read, or Triton would not load it.
        ExportError: The repository cannot be written. Nothing is written after an error.
        OSError: A file cannot be read or written.

    Example:
        >>> write_profile(Path("model_repository"), "gpu")
        ['vgg/configs/gpu.pbtxt']
    """
    if profile not in PROFILES:
        raise ProfileError(f"unknown profile {profile!r}, expected one of {', '.join(PROFILES)}")
    find_networks(repository, on_progress)
    _check_op_library(profile, op_library)
    check_writable(repository)
    with locked(repository):
        remove_stale_staging(repository)
        configs = find_networks(repository)
        if op_library is not None and not any(_serves_operator(repository / name, config) for name, config in configs.items()):
            raise ProfileError(
                f"no network in {repository} is mask-aware, so none needs the library {op_library}: export one with "
                "`defensemble export --mask-aware on`, or leave --op-library out"
            )
        if missing := {name: problem for name, config in configs.items() if (problem := _find_missing(repository / name, config, profile))}:
            raise ProfileError(_format_missing(repository, profile, missing))
        require_valid_configs(RepositoryView(repository), configs)
        paths = {name: _profile_path(name, profile) for name in configs}
        if not force:
            _check_unedited(repository, paths.values(), "overwrite")
        planned_files = {}
        for name, config in configs.items():
            file = repository / paths[name]
            content = pbtxt_from_config(_derive(repository / name, config, profile, settings or EngineCacheOptions(), op_library))
            if not file.exists() or read_regular(file) != content:
                planned_files[paths[name]] = content
        write_files(repository, planned_files)
        for name, config in configs.items() if profile == "gpu-ort-tensorrt" else ():
            versions = served_versions(repository / name, config)
            if len(versions) > 1:
                on_progress(
                    f"{name} serves {len(versions)} versions: ONNX Runtime would mix up their engines, so these are not cached "
                    "but built at every start. To cache them, serve one version (version_policy)"
                )
    return list(planned_files)


def remove_profile(repository: Path, profile: str, *, force: bool = False) -> list[str]:
    """Remove a profile from every network of a repository, in one transaction.

    Args:
        repository: The model repository.
        profile: The name of the profile.
        force: Remove files that were edited by hand, too.

    Returns:
        The paths removed, relative to `repository`.

    Raises:
        ProfileError: No network has the profile, or its file was edited by hand and `force` is False.
        ConfigError: A configuration cannot be read.
        ExportError: The repository cannot be written. Nothing is removed after an error.
        OSError: A file cannot be read or removed.
    """
    find_networks(repository)
    check_writable(repository)
    with locked(repository):
        remove_stale_staging(repository)
        configs = find_networks(repository)
        paths = [path for name in configs if (repository / (path := _profile_path(name, profile))).exists()]
        if not paths:
            existing_profiles = ", ".join(_written_profiles(repository, configs)) or "none"
            raise ProfileError(f"no model in {repository} has the profile '{profile}'; existing profiles: {existing_profiles}")
        if not force:
            _check_unedited(repository, paths, "remove")
        remove_files(repository, paths)
    return paths


def _profile_path(model: str, profile: str) -> str:
    return f"{model}/{PROFILES_FOLDER}/{profile}.pbtxt"


def _served_file(config: schema.ModelConfig, profile: str) -> str:
    """Return the name of the file that a profile serves."""
    return PLAN_FILE if profile == "gpu-tensorrt" else config.default_model_filename or MODEL_FILE


def _find_missing(folder: Path, config: schema.ModelConfig, profile: str) -> str:
    """Return what a profile is missing in one model; empty if nothing."""
    name = _served_file(config, profile)
    served = served_versions(folder, config)
    versions = [str(version) for version in served if not (folder / str(version) / name).is_file()]
    if not versions:
        return "" if served else "no version that is served"
    return f"version{'s' if len(versions) > 1 else ''} {', '.join(versions)} {'have' if len(versions) > 1 else 'has'} no {name}"


def _format_missing(repository: Path, profile: str, missing: Mapping[str, str]) -> str:
    fix = (
        f"Build the missing plans with `defensemble build-engine --repository {repository}` on a machine with that GPU and TensorRT"
        if profile == "gpu-tensorrt"
        else f"Export the model again, or move that version or the whole model out of {repository}"
    )
    listing = "\n".join(f"  {name}: {problem}" for name, problem in missing.items())
    return f"the profile '{profile}' cannot be written; nothing was written:\n{listing}\n{fix}"


def _check_op_library(profile: str, op_library: str | None) -> None:
    if op_library is None:
        return
    if profile != "cpu":
        raise ProfileError(f"op_library is for the profile cpu, got '{profile}': the operator runs on CPUs only, so leave --op-library out")
    if not PurePosixPath(op_library).is_absolute():
        raise ProfileError(
            f"op_library is {op_library!r}; expected an absolute path on the serving machine or in its container, such as "
            f"/opt/{PurePosixPath(op_library).name}"
        )


def _is_own_library(path: str) -> bool:
    """Return whether a library is that of the mask-aware operator, which has no kernel for GPUs."""
    return PurePosixPath(path).name.startswith(_OWN_LIBRARY)


def _serves_operator(folder: Path, config: schema.ModelConfig) -> bool:
    return any(parameter(config, f"mask_aware.{version}") for version in served_versions(folder, config))


def _derive(
    folder: Path, config: schema.ModelConfig, profile: str, settings: EngineCacheOptions, op_library: str | None
) -> schema.ModelConfig:
    """Derive a profile from a network's `config.pbtxt`; inputs, outputs, batch, version policy and parameters do not change."""
    derived = schema.ModelConfig()
    derived.CopyFrom(config)
    derived.name = folder.name
    digests = {}  # version to SHA-256 of the file that the profile serves
    for version in served_versions(folder, config):
        digest = None if profile == "gpu-tensorrt" else parameter(config, f"sha256.{version}")
        if not digest:
            digest = hashlib.sha256(read_regular(folder / str(version) / _served_file(config, profile))).hexdigest()
        digests[version] = digest
    kind = _CPU if profile == "cpu" else _GPU
    for group in derived.instance_group or [derived.instance_group.add()]:
        group.kind = kind
        group.ClearField("gpus")
    if kind == _GPU:
        others = [library for library in derived.model_operations.op_library_filename if not _is_own_library(library)]
        derived.ClearField("model_operations")
        derived.model_operations.op_library_filename.extend(others)
    elif op_library is not None and _serves_operator(folder, config):
        libraries = derived.model_operations.op_library_filename
        libraries.extend([op_library] if op_library not in libraries else [])
    if not derived.model_operations.op_library_filename:
        derived.ClearField("model_operations")
    accelerators = derived.optimization.execution_accelerators
    accelerators.ClearField("gpu_execution_accelerator")
    if profile == "gpu-ort-tensorrt":
        accelerator = accelerators.gpu_execution_accelerator.add(name="tensorrt")
        accelerator.parameters.update(_engine_parameters(derived, digests, settings))
    elif profile == "gpu-tensorrt":
        derived.backend = "tensorrt"
        derived.ClearField("platform")
        derived.default_model_filename = PLAN_FILE
        derived.optimization.ClearField("execution_accelerators")
        for key in [key for key in derived.parameters if key.startswith(("sha256.", "mask_aware."))]:
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
    """Return whether a profile's file differs from what `write_profile` or a later export wrote: a comment is an edit, too."""
    content = read_regular(path, MAX_TEXT_BYTES)
    try:
        config = config_from_pbtxt(content.decode(errors="replace"), str(path))
    except ConfigError:
        return True
    return not matches_digest(config) or content != pbtxt_from_config(config)


def _check_unedited(repository: Path, paths: Iterable[str], action: str) -> None:
    edited = [str(path) for name in paths if (path := repository / name).exists() and _is_edited(path)]
    if edited:
        raise ProfileError(
            f"edited by hand, or not written by `defensemble profile write`: {', '.join(edited)}; nothing was changed. "
            f"Keep a copy, then pass --force to {action} them"
        )


def _written_profiles(repository: Path, models: Mapping[str, object]) -> list[str]:
    return sorted({path.stem for name in models for path in (repository / name / PROFILES_FOLDER).glob("*.pbtxt")})


def _state(folder: Path, config: schema.ModelConfig, profile: str) -> str:
    path = folder.parent / _profile_path(folder.name, profile)
    if profile not in PROFILES:
        return "by hand" if path.exists() else "not written"
    missing = _find_missing(folder, config, profile)
    if missing:
        return missing
    if not path.exists():
        return "not written"
    if _is_edited(path):
        return "edited by hand"
    written = config_from_file(path)
    # Up to date if writing it again with the same settings changes nothing.
    up_to_date = _derive(folder, config, profile, _read_settings(written), _read_op_library(written, config))
    return "written" if written == up_to_date else "out of date"


def _read_settings(config: schema.ModelConfig) -> EngineCacheOptions:
    """Return the settings that a profile was written with."""
    for accelerator in config.optimization.execution_accelerators.gpu_execution_accelerator:
        parameters = accelerator.parameters
        defaults = EngineCacheOptions()
        folder, size = parameters.get("trt_engine_cache_path"), parameters.get("max_workspace_size_bytes")
        return EngineCacheOptions(
            str(PurePosixPath(folder).parent) if folder is not None else defaults.cache_dir,
            int(size) >> 20 if size is not None else defaults.workspace_mib,
        )
    return EngineCacheOptions()


def _read_op_library(written: schema.ModelConfig, config: schema.ModelConfig) -> str | None:
    """Return the library of operators that a profile was written with, in addition to those of its `config.pbtxt`."""
    own = set(config.model_operations.op_library_filename)
    return next((library for library in written.model_operations.op_library_filename if library not in own), None)
