"""Whether a server can run the TensorRT plans of an edit, judged by the plans that it serves already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defensemble_repository.checks.finding import Finding
from defensemble_repository.errors import ConfigError, ManifestError
from defensemble_repository.gpus import Gpu
from defensemble_repository.names import BACKEND_OF_PLATFORM, MANIFEST_FILE, PLAN_BACKEND, PROFILES_FOLDER
from defensemble_repository.pbtxt import config_from_file
from defensemble_repository.plan_manifest import read_manifest
from defensemble_repository.reader import model_backend
from defensemble_repository.view import RepositoryView

from .server_models import ModelServer, is_averaging
from .targets import TargetEdit


def plan_findings(target_edit: TargetEdit, server: ModelServer) -> list[Finding]:
    """Find TensorRT plans of the new ensemble that a server cannot run.

    A plan only runs with the version of TensorRT and the kind of GPU that it was built for (NVIDIA's documentation of TensorRT, "Version
    compatibility"). A plan that is being served shows which of these the server has.
    """
    from defensemble_server import Machine, problem_of_version

    files, repository = target_edit.plan.outcome(), target_edit.repository
    loads, configs = set(target_edit.loads[server.url]), target_edit.configs[server.url]
    members = [(model, version) for model, version in target_edit.plan.steps() if not is_averaging(model)]
    serving = [(model, version) for model, version in members if model not in loads and _is_plan(configs.get(model, {}))]
    new_plans = [(model, version) for model, version in members if model in loads and _will_be_plan(files, model, by_profile=bool(serving))]
    machine = None
    for model, version in serving if new_plans else ():
        try:
            manifest = read_manifest(repository / model / str(version) / MANIFEST_FILE)
        except ManifestError:
            continue  # reported by the checks of that member
        if manifest is not None:
            machine = Machine(manifest.tensorrt, (Gpu(manifest.gpu, manifest.compute_capability, manifest.driver),))
            break
    findings = []
    for model, version in new_plans:
        if machine is None:
            text = f"version {version} is a TensorRT plan; it is unknown whether {server.url} has the TensorRT and GPU that it needs"
            findings.append(Finding(model, text, is_error=False))
            continue
        config = files.config(model)
        shape = [tuple(tensor.dims) for tensor in config.input][:1]
        problem = problem_of_version(
            Path(repository) / model, version, machine, max_batch_size=config.max_batch_size, image_shape=shape[0] if shape else ()
        )
        if problem is not None:
            findings.append(Finding(model, f"{problem} (the TensorRT and GPU of {server.url} are those of the plans that it serves)"))
    return findings


def _will_be_plan(files: RepositoryView, model: str, *, by_profile: bool) -> bool:
    """Return whether a server will load a model as a plan: by its configuration or, with `by_profile`, by one of its profiles."""
    if model_backend(files.config(model)) == PLAN_BACKEND:
        return True
    for path in sorted((files.repository / model / PROFILES_FOLDER).glob("*.pbtxt")) if by_profile else ():
        try:
            if model_backend(config_from_file(path)) == PLAN_BACKEND:
                return True
        except ConfigError:
            continue  # reported by the checks
    return False


def _is_plan(config: Mapping[str, Any]) -> bool:
    return PLAN_BACKEND in (config.get("backend"), BACKEND_OF_PLATFORM.get(config.get("platform", "")))
