"""Build TensorRT plans for the models of a repository: each is built from its ONNX file, compared with it and stored in its folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from defensemble_repository.errors import ManifestError, RepositoryError
from defensemble_repository.filesystem.regular_files import read_regular
from defensemble_repository.filesystem.signals import defer_sigint
from defensemble_repository.lock import locked
from defensemble_repository.names import BACKEND, MANIFEST_FILE, PLAN_FILE
from defensemble_repository.pbtxt import schema
from defensemble_repository.plan_manifest import Manifest, read_manifest
from defensemble_repository.reader import is_ensemble, model_backend, read_models, served_versions, versions_in
from defensemble_repository.transaction import check_writable, remove_stale_staging, write_files
from defensemble_repository.view import RepositoryView, file_digest, require_repository

from ..entries.stored_graph import stored_graph
from ..errors import EngineError
from ..verification.images import images_from_record
from .build_steps import INPUT, BuildRequest, EngineOptions, build_calls
from .builder import OnPhase, engine_from_onnx, request_from_onnx
from .target import Target, check_target, find_target
from .timing_cache import default_timing_cache
from .verify import Agreement, check_images, verify_plan

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PlannedEngine:
    """A plan that can be built: a version of a model, its ONNX file and that file's digest, and the build request."""

    model: str
    version: int
    graph: Path
    onnx_sha256: str
    request: BuildRequest

    @property
    def name(self) -> str:
        """Model and version, as `model@version`."""
        return f"{self.model}@{self.version}"

    @property
    def calls(self) -> list[str]:
        """The calls of TensorRT's API that build the plan, in order."""
        return [str(call) for call in build_calls(self.request)]


@dataclass(frozen=True)
class BuiltEngine:
    """The result of a `PlannedEngine`. `agreement` is None if the plan was already up to date or was not compared."""

    model: str
    version: int
    manifest: Manifest
    built: bool
    agreement: Agreement | None


def planned_engines(
    repository: Path,
    *,
    models: Sequence[str] | None = None,
    versions: Sequence[int] | None = None,
    options: EngineOptions | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> list[PlannedEngine]:
    """Return the plans that can be built. Neither TensorRT nor a GPU is needed; known problems of a build are found here.

    Plans can be built for members and fused graphs, which have the input `images`. Averaging models and ensembles stay on ONNX Runtime.

    Args:
        repository: The model repository.
        models: Names of models. None: all that plans can be built for.
        versions: Versions of these models. None: those that are served.
        options: How to build. None: the defaults.
        on_progress: Called with a line about each folder that is not a model.

    Raises:
        EngineError: A model or version does not exist, or a graph is missing, was changed, or is not supported by TensorRT.
        ConfigError: A configuration cannot be read.
        ExportError: A number is out of range.
        OSError: A file cannot be read.

    Example:
        >>> [engine.name for engine in planned_engines(Path("model_repository"))]
        ['resnet@1', 'vgg@1']
    """
    options = options or EngineOptions()
    require_repository(repository, EngineError)
    configs = read_models(repository, on_progress)
    supported = [name for name, config in configs.items() if _unsupported_reason(config) is None]
    for name in models or ():
        if name not in configs:
            raise EngineError(f"{repository} has no model '{name}'; plans can be built for {', '.join(supported) or 'no model there'}")
        reason = _unsupported_reason(configs[name])
        if reason is not None:
            raise EngineError(
                f"no plan can be built for '{name}': {reason}; plans can be built for {', '.join(supported) or 'no model there'}"
            )
    chosen = [name for name in supported if models is None or name in models]
    if not chosen:
        raise EngineError(f"{repository} has no model that a plan can be built for: add one with `defensemble export`")
    engines = []
    for name in chosen:
        folder = repository / name
        on_disk = versions_in(folder)
        served = served_versions(folder, configs[name])
        if versions is None and not served:
            raise EngineError(
                f"{folder} has no version that is served (on disk: {', '.join(map(str, on_disk)) or 'none'}): restore the folder, "
                f"export '{name}' again, or move {folder} out of the repository"
            )
        if versions is not None and models is not None and (missing := sorted(set(versions) - set(on_disk))):
            raise EngineError(
                f"'{name}' has no version {', '.join(map(str, missing))}; existing versions: {', '.join(map(str, on_disk)) or 'none'}"
            )
        engines += [
            _plan_engine(folder, configs[name], version, options)
            for version in (served if versions is None else on_disk)
            if versions is None or version in versions
        ]
    if not engines:
        raise EngineError(f"none of {', '.join(chosen)} has a version {', '.join(map(str, versions or ()))}")
    return engines


def build_engines(
    repository: Path,
    *,
    models: Sequence[str] | None = None,
    versions: Sequence[int] | None = None,
    options: EngineOptions | None = None,
    timing_cache: Path | None = None,
    images: Array | None = None,
    data_dir: Path | None = None,
    compare: bool = True,
    force: bool = False,
    on_progress: Callable[[str], None] = lambda text: None,
    on_phase: OnPhase | None = None,
) -> list[BuiltEngine]:
    """Build and verify `model.plan` and `model.plan.json` for all `planned_engines`. Each plan is written as soon as it is verified.

    A plan that was built from the same graph, by the same TensorRT, for the same GPU and options, is up to date and is kept. A new plan
    is compared with its graph in ONNX Runtime, and discarded if it differs by more than the tolerances of the precision.

    Args:
        repository: The model repository.
        models: See `planned_engines`.
        versions: See `planned_engines`.
        options: See `planned_engines`.
        timing_cache: File of kernel timings to read and update. None: `default_timing_cache`.
        images: Real images to compare on, float32 (N,C,H,W). None: test images of the dataset that each model was trained on.
        data_dir: Folder of that dataset.
        compare: Compare new plans with their graphs.
        force: Build plans that are up to date, too.
        on_progress: Called with a line about each plan.
        on_phase: Called during a build with the phase, its parent phase, and the steps done and in total.

    Raises:
        EngineError: See `planned_engines`, `engine_from_onnx` and `verify_plan`. Plans written before an error are kept.
        ExportError: A number is out of range, or the dataset is not found.
        OSError: A file cannot be read or written.
        defensemble_training.DataError: The dataset cannot be read.

    Example:
        >>> build_engines(Path("model_repository"), options=EngineOptions(opt_batch=8), on_progress=print)
        vgg@1: built in 41.2 s for batches of 1 to 16, fastest at 8, fp32; 100.00% of 1016 images get the same class, ...
    """
    options = options or EngineOptions()
    engines = planned_engines(repository, models=models, versions=versions, options=options, on_progress=on_progress)
    target = find_target()
    for engine in engines:
        check_target(target, engine.request.precision, hardware_compatible=options.hardware_compatible)
        if compare and images is not None:
            check_images(images, engine.request.profile)
    check_writable(repository)
    timing_cache = default_timing_cache(target) if timing_cache is None else timing_cache
    outcomes = []
    for engine in engines:
        current = None if force else _up_to_date_manifest(engine, target)
        if current is not None:
            on_progress(f"{engine.name}: up to date, built {current.date} with TensorRT {current.tensorrt}")
            outcomes.append(BuiltEngine(engine.model, engine.version, current, built=False, agreement=None))
            continue
        real = (
            None if not compare else _images_for_engine(engine, data_dir) if images is None else images
        )  # before the build: there may be none
        outcomes.append(_build(repository, engine, target, timing_cache, real, on_progress, on_phase))
    return outcomes


def _build(
    repository: Path,
    engine: PlannedEngine,
    target: Target,
    timing_cache: Path,
    images: Array | None,
    on_progress: Callable[[str], None],
    on_phase: OnPhase | None,
) -> BuiltEngine:
    request = engine.request
    with tempfile.TemporaryDirectory(prefix="defensemble-engine-") as folder:
        plan = Path(folder) / PLAN_FILE
        manifest = engine_from_onnx(engine.graph, plan, request, target, timing_cache=timing_cache, on_phase=on_phase)
        agreement = None
        if images is not None:
            agreement = verify_plan(plan, engine.graph, images, profile=request.profile, precision=request.precision)
        with locked(repository), defer_sigint() as interrupts:
            for stale in remove_stale_staging(repository):
                on_progress(f"removed {stale}, left by a command that was killed")
            # The build request belongs to the graph as it was when the plan was requested.
            if not engine.onnx_sha256 == manifest.onnx_sha256 == file_digest(engine.graph):
                raise EngineError(f"{engine.graph} was changed while plans were built, so its plan is not kept: build it again")
            prefix = f"{engine.model}/{engine.version}"
            content = {f"{prefix}/{PLAN_FILE}": plan.read_bytes(), f"{prefix}/{MANIFEST_FILE}": manifest.to_bytes()}
            interrupts.deliver()
            write_files(repository, content)
            comparison = "not compared" if agreement is None else str(agreement)
            # Report the plan before a late interrupt ends the command.
            built = f"built in {manifest.build_s:.1f} s for batches of {_format_batches(request)}, {request.precision}"
            on_progress(f"{engine.name}: {built}; {comparison}")
    return BuiltEngine(engine.model, engine.version, manifest, built=True, agreement=agreement)


def _unsupported_reason(config: schema.ModelConfig) -> str | None:
    """Return why no plan can be built for a model; None if one can be built."""
    if is_ensemble(config):
        return "it is an ensemble, which has no graph: name its members"
    if model_backend(config) != BACKEND:
        return f"its backend is '{config.backend or config.platform}', and plans are built from graphs of the backend '{BACKEND}'"
    inputs = [(tensor.name, tensor.data_type, len(tensor.dims)) for tensor in config.input]
    if inputs != [(INPUT, schema.TYPE_FP32, 3)]:
        return f"its inputs are {', '.join(name for name, _, _ in inputs)} and not images: it is small, and stays on ONNX Runtime"
    return None


def _plan_engine(folder: Path, config: schema.ModelConfig, version: int, options: EngineOptions) -> PlannedEngine:
    try:
        graph = stored_graph(RepositoryView(folder.parent), folder.name, version, config)
        request = request_from_onnx(
            graph.content,
            str(folder.parent / graph.path),
            max_batch_size=int(config.max_batch_size),
            precision=graph.precision,
            **asdict(options),
        )
    except EngineError:
        raise
    except RepositoryError as error:  # an error about a number does not name the model
        raise EngineError(f"{folder.name}@{version}: {error}") from error
    return PlannedEngine(folder.name, version, folder.parent / graph.path, graph.sha256, request)


def _up_to_date_manifest(engine: PlannedEngine, target: Target) -> Manifest | None:
    """Return the manifest of the existing plan if it is up to date, else None."""
    plan = engine.graph.with_name(PLAN_FILE)
    try:
        manifest = read_manifest(engine.graph.with_name(MANIFEST_FILE))
    except ManifestError:
        return None  # damaged: build again
    if manifest is None or not plan.exists():
        return None
    # A plan does not depend on the driver.
    expected = {**asdict(target), "driver": manifest.driver, "onnx_sha256": engine.onnx_sha256, **engine.request.recorded}
    is_same = all(getattr(manifest, name) == value for name, value in expected.items())
    return manifest if is_same and file_digest(plan) == manifest.plan_sha256 else None


def _images_for_engine(engine: PlannedEngine, data_dir: Path | None) -> Array:
    """Return test images of the dataset in the graph's metadata."""
    real = images_from_record(onnx.load_model_from_string(read_regular(engine.graph)), engine.name, data_dir)
    if real is None:
        raise EngineError(
            f"{engine.graph} has no training record, so the dataset to compare its plan on is unknown: "
            "pass images (--images FILE.npy), or skip the comparison (--no-compare)"
        )
    return real.images


def _format_batches(request: BuildRequest) -> str:
    profile = request.profile
    return f"{profile.min[0]} to {profile.max[0]}, fastest at {profile.opt[0]}"
