"""Will a server run a TensorRT plan that an edit brings? The plans that it serves already tell what it has."""

from __future__ import annotations

from pathlib import Path

from defensemble_repository.checks.finding import Finding
from defensemble_repository.errors import ConfigError, ManifestError
from defensemble_repository.gpus import Gpu
from defensemble_repository.names import BACKEND_OF_PLATFORM, MANIFEST_FILE, PLAN_BACKEND, PROFILES_FOLDER
from defensemble_repository.pbtxt import config_from_file
from defensemble_repository.plan_manifest import read_manifest
from defensemble_repository.reader import model_backend
from defensemble_repository.view import RepositoryView

from .server_models import Served, is_averaging
from .targets import TargetEdit


def plan_findings(target_edit: TargetEdit, served: Served) -> list[Finding]:
    """What stands against the plans that a server would load, in the place of ONNX files, for the new ensemble.

    A plan is bound to the version of TensorRT and the kind of GPU that it was built with (NVIDIA's documentation of TensorRT, "Version
    compatibility"); one that is served proves that the server has what it was built with.
    """
    from defensemble_server import Machine, problem_of_version

    files, repository = target_edit.plan.outcome(), target_edit.repository
    loads = set(target_edit.loads[served.url])
    votes = [(model, version) for model, version in target_edit.plan.steps() if not is_averaging(model)]
    serving = [(model, version) for model, version in votes if model not in loads and _is_plan(served, model)]
    arriving = [(model, version) for model, version in votes if model in loads and _comes_as_plan(files, model, by_profile=bool(serving))]
    machine = None
    for model, version in serving if arriving else ():
        try:
            known = read_manifest(repository / model / str(version) / MANIFEST_FILE)
        except ManifestError:
            continue  # said by the checks of the member that it is of
        if known is not None:
            machine = Machine(known.tensorrt, (Gpu(known.gpu, known.compute_capability, known.driver),))
            break
    found = []
    for model, version in arriving:
        if machine is None:
            text = f"version {version} is a TensorRT plan; whether {served.url} has what it was built with is not known from here"
            found.append(Finding(model, text, is_error=False))
            continue
        config = files.config(model)
        shape = [tuple(tensor.dims) for tensor in config.input][:1]
        problem = problem_of_version(
            Path(repository) / model, version, machine, max_batch_size=config.max_batch_size, image_shape=shape[0] if shape else ()
        )
        if problem is not None:
            found.append(Finding(model, f"{problem} (what {served.url} has is told by the plans that it serves)"))
    return found


def _comes_as_plan(files: RepositoryView, model: str, *, by_profile: bool) -> bool:
    """Whether a model that is to be loaded is a plan by its configuration, or, on a server that takes plans, by one of its profiles."""
    if model_backend(files.config(model)) == PLAN_BACKEND:
        return True
    for path in sorted((files.repository / model / PROFILES_FOLDER).glob("*.pbtxt")) if by_profile else ():
        try:
            if model_backend(config_from_file(path)) == PLAN_BACKEND:
                return True
        except ConfigError:
            continue  # said by the checks
    return False


def _is_plan(served: Served, model: str) -> bool:
    config = served.config(model) or {}
    return PLAN_BACKEND in (config.get("backend"), BACKEND_OF_PLATFORM.get(config.get("platform", "")))
