"""Check, before Triton starts, that the chosen runtime can serve a profile and every model that needs a GPU."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from defensemble_repository.names import BACKEND, CONFIG_FILE, PLAN_BACKEND, PROFILES, PROFILES_FOLDER
from defensemble_repository.profile_digest import DIGEST_PARAMETER
from defensemble_repository.reader import model_filename
from defensemble_repository.view import file_digest

from .errors import NotServableError, PlanError
from .plans.compatibility import problem_of_version
from .plans.machine import Machine, read_machine
from .repository import Model, Repository, format_problems, read_model
from .runtime.find import CONTAINER, Runtime


def models_by_profile(repository: Path) -> dict[str, list[str]]:
    """Return the models that have each profile in `repository`, by profile."""
    models: dict[str, list[str]] = {}
    for path in sorted(repository.glob(f"*/{PROFILES_FOLDER}/*.pbtxt")):
        models.setdefault(path.stem, []).append(path.parent.parent.name)
    return dict(sorted(models.items()))


def check_profile(repository: Path, profile: str, *, only_cpus: bool, on_progress: Callable[[str], None] = lambda text: None) -> None:
    """Check from the files of a repository whether a profile can be served.

    Args:
        repository: The model repository.
        profile: Name of the profile.
        only_cpus: Whether the runtime has no GPU.
        on_progress: Receives the models without the (custom) profile, and the models whose profile is out of date.

    Raises:
        NotServableError: No model has the profile, a network lacks it, it needs a GPU, or a file that it serves is missing.
    """
    models_with = models_by_profile(repository)
    if only_cpus and profile in PROFILES and profile != "cpu":
        raise NotServableError(_only_cpus(profile))
    if profile not in models_with:
        existing = ", ".join(models_with) or "none"
        others = f"`defensemble profile write NAME --repository {shlex.quote(str(repository))}` writes {', '.join(PROFILES)}"
        fix = _write(repository, profile) if profile in PROFILES else others
        raise NotServableError(f"no model in {repository} has the profile '{profile}' (profiles: {existing}): {fix}")
    models = {name: (plain, chosen) for name, plain, chosen in _read_both(repository, profile)}
    gpu_models = [name for name, (_, chosen) in models.items() if name in models_with[profile] and chosen.needs_gpu]
    if only_cpus and gpu_models:
        raise NotServableError(_only_cpus(profile, f" ({', '.join(gpu_models)})"))
    without_profile = [name for name, (plain, _) in models.items() if name not in models_with[profile] and _is_network(plain)]
    if without_profile and profile in PROFILES:
        raise NotServableError(
            f"{', '.join(without_profile)} lack the profile '{profile}' and would be served by {CONFIG_FILE}: {_write(repository, profile)}"
        )
    if without_profile:
        on_progress(f"{', '.join(without_profile)}: no {PROFILES_FOLDER}/{profile}.pbtxt, so served by {CONFIG_FILE}")
    problems = {
        name: problem
        for name, (_, chosen) in models.items()
        if name in models_with[profile] and (problem := _missing(repository, profile, chosen))
    }
    if problems:
        raise NotServableError(f"the profile '{profile}' cannot be served:\n{format_problems(problems)}")
    for name, (plain, chosen) in models.items():
        changed = [field for field in _SHARED_FIELDS if getattr(plain.config, field) != getattr(chosen.config, field)]
        if profile in PROFILES and changed:
            on_progress(
                f"{name}: {PROFILES_FOLDER}/{profile}.pbtxt and {CONFIG_FILE} differ in {', '.join(changed)}: {_write(repository, profile)}"
            )


def check_gpu(content: Repository, runtime: Runtime, *, strict: bool, on_progress: Callable[[str], None] = lambda text: None) -> Repository:
    """Return `content` without the models whose GPU or TensorRT plan the server cannot provide.

    The embedded runtime is not checked: its backend refuses a GPU itself. A Docker engine on another machine cannot be checked.

    Raises:
        NotServableError: With `strict`, a model cannot be served.
        PlanError: The TensorRT version of a container cannot be determined.
    """
    gpu_models = {name: model for name, model in content.models.items() if model.needs_gpu}
    if not gpu_models or runtime.name == "embedded":
        return content
    engine = runtime.environment.get("DOCKER_HOST", "")
    if runtime.name == "docker" and engine and not engine.startswith("unix:"):
        on_progress(f"cannot check the GPU and TensorRT of {engine} from here; see Triton's log")
        return content
    machine = _machine(runtime, any(model.backend == PLAN_BACKEND for model in gpu_models.values()), on_progress)
    problems = {
        name: problem for name, model in gpu_models.items() if (problem := _unservable_reason(content.path, model, machine, runtime))
    }
    if strict and problems:
        raise NotServableError(f"this profile cannot be served:\n{format_problems(problems)}")
    return content.without(problems)


def engine_caches(content: Repository) -> list[str]:
    """Return the folders of the served models' engine caches, as paths on the server."""
    return sorted({str(PurePosixPath(path).parent) for model in content.models.values() if (path := _engine_cache(model))})


_SHARED_FIELDS = ("input", "output", "max_batch_size", "version_policy")


def _read_both(repository: Path, profile: str) -> list[tuple[str, Model, Model]]:
    """Return each model by `config.pbtxt` and by the profile; `read_repository` reports those that cannot be read."""
    pairs = []
    for folder in sorted(entry for entry in repository.iterdir() if entry.is_dir()):
        try:
            pairs.append((folder.name, read_model(folder, None), read_model(folder, profile)))
        except (NotServableError, OSError):
            continue
    return pairs


def _is_network(model: Model) -> bool:
    return bool(model.backend == BACKEND) and [tensor.name for tensor in model.config.input] == ["images"]


def _only_cpus(profile: str, models: str = "") -> str:
    return (
        f"the profile '{profile}' needs a GPU{models}, and the embedded runtime only supports CPUs: "
        "pass --runtime docker, --runtime path inside NVIDIA's container, or --profile cpu"
    )


def _write(repository: Path, profile: str) -> str:
    return f"write it with `defensemble profile write {profile} --repository {shlex.quote(str(repository))}`"


def _missing(repository: Path, profile: str, model: Model) -> str:
    """Return what is missing for a model's profile; empty if nothing is."""
    folder = repository / model.name
    again = f"then write the profile again: `defensemble profile write {profile} --repository {shlex.quote(str(repository))}`"
    for version in model.served_versions:
        if model.backend != PLAN_BACKEND or (name := model_filename(model.config)) is None:
            continue
        file = folder / str(version) / name
        if not file.is_file():
            build = f"defensemble build-engine {model.name} --repository {shlex.quote(str(repository))} --version {version}"
            return f"version {version} has no plan ({file} is missing): build it with `{build}`, {again}"
        expected = model.parameter(f"sha256.{version}")
        if model.parameter(DIGEST_PARAMETER) is None:
            continue
        if expected is None:
            return f"version {version} was added after the profile was written: {_write(repository, profile)}"
        if expected != file_digest(file):
            return f"version {version}: {file} is not the plan that the profile was written for: {_write(repository, profile)}"
    cache = _engine_cache(model)
    if cache and cache != _own_cache(folder, model, cache):
        # Cached engines are named after the tensors of a graph, not its weights.
        return (
            f"the engines in {cache} belong to another version than the served ones ({', '.join(map(str, model.served_versions))}), and "
            f"ONNX Runtime would use them anyway: {_write(repository, profile)}"
        )
    return ""


def _own_cache(folder: Path, model: Model, cache: str) -> str | None:
    """Return the cache folder of the only served version; None if several are served, which would share engines."""
    if model.parameter(DIGEST_PARAMETER) is None:
        return cache
    if len(model.served_versions) != 1:
        return None
    (version,) = model.served_versions
    file = folder / str(version) / (model_filename(model.config) or "")
    digest = model.parameter(f"sha256.{version}") or (file_digest(file) if file.is_file() else "")
    return str(PurePosixPath(cache).parent / f"{model.name}-{digest[:16]}")


def _engine_cache(model: Model) -> str:
    """Return the folder in which ONNX Runtime caches a model's TensorRT engines; empty if it does not."""
    for accelerator in model.config.optimization.execution_accelerators.gpu_execution_accelerator:
        if accelerator.parameters.get("trt_engine_cache_enable", "0").lower() in ("1", "true"):
            return str(accelerator.parameters.get("trt_engine_cache_path", ""))
    return ""


def _machine(runtime: Runtime, plans: bool, on_progress: Callable[[str], None]) -> Machine:
    if runtime.name != "docker":
        return read_machine(runtime.environment)
    # The container gets all GPUs, whatever this variable selects here.
    environment = {key: value for key, value in runtime.environment.items() if key != "CUDA_VISIBLE_DEVICES"}
    if not plans:
        return read_machine(environment)
    python = [str(runtime.executable), "run", "--rm", "--gpus=all", "--entrypoint=python3", CONTAINER]
    on_progress(f"reading the TensorRT version of the image (this command has not been tested): {shlex.join(python)}")
    try:
        return read_machine(environment, python=python)
    except PlanError as error:
        raise PlanError(f"{error}. If the image is not on this machine, pull it: docker pull {CONTAINER}") from error


def _unservable_reason(repository: Path, model: Model, machine: Machine, runtime: Runtime) -> str:
    """Return why a model cannot be served on `machine`; empty if it can."""
    if model.backend == PLAN_BACKEND:
        for version in model.served_versions:
            problem = problem_of_version(
                repository / model.name, version, machine, max_batch_size=model.config.max_batch_size, image_shape=model.image_shape
            )
            if problem is not None:
                return problem
    if not machine.gpus:
        return f"it needs a GPU, and this machine has none ({machine.why_no_gpu}): serve with --profile cpu, or on a machine with a GPU"
    cache = _engine_cache(model)
    place = Path(cache).parent
    if cache and runtime.name == "path" and not os.access(place, os.W_OK | os.X_OK):
        return (
            f"{place}, the folder for its engines, does not exist or cannot be written: create it, or choose another with "
            "`defensemble profile write gpu-ort-tensorrt --cache-dir FOLDER`"
        )
    return ""
