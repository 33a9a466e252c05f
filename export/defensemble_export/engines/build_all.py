"""TensorRT plans for the models of a repository: each built from its ONNX file, compared with it, and put into its folder."""

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
from defensemble_repository.view import RepositoryView, file_digest

from ..entries.stored_graph import stored_graph
from ..errors import EngineError
from ..verification.images import images_of_record
from .build_steps import INPUT, BuildRequest, EngineOptions, build_calls
from .builder import OnProgress, engine_from_onnx, request_from_onnx
from .target import Target, check_target, find_target
from .timing_cache import default_timing_cache
from .verify import Agreement, check_images, verify_plan

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PlannedEngine:
    """A version of a model that a plan can be built for: its ONNX file as it is now, and what will be asked of TensorRT."""

    model: str
    version: int
    graph: Path
    onnx_sha256: str
    request: BuildRequest

    @property
    def name(self) -> str:
        """Model and version, as ``model@version``."""
        return f"{self.model}@{self.version}"

    @property
    def calls(self) -> list[str]:
        """The calls of TensorRT that build it, in their order."""
        return [str(call) for call in build_calls(self.request)]


@dataclass(frozen=True)
class BuiltEngine:
    """What became of a planned engine; ``agreement`` is None where it was up to date already, or was not compared."""

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
    on_message: Callable[[str], None] = lambda text: None,
) -> list[PlannedEngine]:
    """What plans can be built for: the versions named, or those served, of the models named, or of all that take ``images``.

    Members and fused graphs do; averaging models and ensembles do not: they stay as they are. Nothing is built, and neither
    TensorRT nor a GPU is needed: what a plan would fail by is found here, as far as it can be known. ``on_message`` gets a line about each
    folder that is no model.

    Raises:
        EngineError: there is no such model or version, a graph is missing, was changed, or is not one that TensorRT reads.
        ConfigError, ExportError, OSError: the repository cannot be read, a number is out of its range.
    """
    options = options or EngineOptions()
    if not repository.is_dir():
        raise EngineError(f"there is no model repository {repository}: name a folder that `defensemble export` has written")
    configs = read_models(repository, on_message)
    able = [name for name, config in configs.items() if _why_not(config) is None]
    for name in models or ():
        if name not in configs:
            raise EngineError(f"{repository} has no model '{name}'; plans can be built for {', '.join(able) or 'none of its models'}")
        why_not = _why_not(configs[name])
        if why_not is not None:
            raise EngineError(f"no plan is built for '{name}': {why_not}; plans can be built for {', '.join(able) or 'none'}")
    chosen = [name for name in able if models is None or name in models]
    if not chosen:
        raise EngineError(f"{repository} has no model that a plan can be built for: write one into it with `defensemble export`")
    planned = []
    for name in chosen:
        folder = repository / name
        there = versions_in(folder)
        served = served_versions(folder, configs[name])
        if versions is None and not served:
            raise EngineError(
                f"{folder} has no version that is served (there are {', '.join(map(str, there)) or 'none'}): put the folder back, "
                f"export '{name}' again, or move {folder} out of the repository"
            )
        if versions is not None and models is not None and (missing := sorted(set(versions) - set(there))):
            raise EngineError(f"'{name}' has no version {', '.join(map(str, missing))}; there are {', '.join(map(str, there)) or 'none'}")
        planned += [
            _planned(folder, configs[name], version, options)
            for version in (served if versions is None else there)
            if versions is None or version in versions
        ]
    if not planned:
        raise EngineError(f"none of {', '.join(chosen)} has a version {', '.join(map(str, versions or ()))}")
    return planned


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
    on_message: Callable[[str], None] = lambda text: None,
    on_progress: OnProgress | None = None,
) -> list[BuiltEngine]:
    """Build ``model.plan`` and ``model.plan.json`` for what ``planned_engines`` lists, each written as soon as it has proved right.

    A plan that is there already, built from the same graph by the same TensorRT for the same GPU and options, stays, unless ``force``. A
    new one is compared, unless ``compare`` is False, with ONNX Runtime on real ``images`` (N,C,H,W), by default test images of the data
    that the model was trained on (from ``data_dir`` where it is given), and is not kept where it differs by more than the precision's
    tolerances. ``timing_cache`` None is ``default_timing_cache``. ``on_message`` gets a line about each plan.

    Raises:
        EngineError: see ``planned_engines``, ``engine_from_onnx`` and ``verify_plan``; plans that were written before it stay.
        ExportError, OSError, defensemble_training.DataError: likewise.
    """
    options = options or EngineOptions()
    planned = planned_engines(repository, models=models, versions=versions, options=options, on_message=on_message)
    target = find_target()
    for one in planned:
        check_target(target, one.request.precision, hardware_compatible=options.hardware_compatible)
        if compare and images is not None:
            check_images(images, one.request.profile)
    check_writable(repository)
    timing_cache = default_timing_cache(target) if timing_cache is None else timing_cache
    outcomes = []
    for one in planned:
        current = None if force else _current(one, target)
        if current is not None:
            on_message(f"{one.name}: up to date, built {current.date} with TensorRT {current.tensorrt}")
            outcomes.append(BuiltEngine(one.model, one.version, current, built=False, agreement=None))
            continue
        real = None if not compare else _real_images(one, data_dir) if images is None else images  # before the build: there may be none
        outcomes.append(_build(repository, one, target, timing_cache, real, on_message, on_progress))
    return outcomes


def _build(
    repository: Path,
    one: PlannedEngine,
    target: Target,
    timing_cache: Path,
    images: Array | None,
    on_message: Callable[[str], None],
    on_progress: OnProgress | None,
) -> BuiltEngine:
    request = one.request
    with tempfile.TemporaryDirectory(prefix="defensemble-engine-") as folder:
        plan = Path(folder) / PLAN_FILE
        manifest = engine_from_onnx(one.graph, plan, request, target, timing_cache=timing_cache, on_progress=on_progress)
        agreement = None
        if images is not None:
            agreement = verify_plan(plan, one.graph, images, profile=request.profile, precision=request.precision)
        with locked(repository), defer_sigint() as interrupts:
            for stale in remove_stale_staging(repository):
                on_message(f"removed {stale}, which a command that was killed had left")
            # The request was made from the graph as it was planned.
            if not one.onnx_sha256 == manifest.onnx_sha256 == file_digest(one.graph):
                raise EngineError(f"{one.graph} was changed while plans were built, so its plan is not kept: build it again")
            place = f"{one.model}/{one.version}"
            content = {f"{place}/{PLAN_FILE}": plan.read_bytes(), f"{place}/{MANIFEST_FILE}": manifest.to_bytes()}
            interrupts.deliver()
            write_files(repository, content)
            compared = "not compared" if agreement is None else str(agreement)
            # Before an interrupt that came too late for this plan ends the command.
            on_message(f"{one.name}: built in {manifest.build_s:.1f} s for batches of {_batches(request)}, {request.precision}; {compared}")
    return BuiltEngine(one.model, one.version, manifest, built=True, agreement=agreement)


def _why_not(config: schema.ModelConfig) -> str | None:
    """Why no plan can be built for a model; None where one can."""
    if is_ensemble(config):
        return "it is an ensemble, which is steps and no graph: name its members"
    if model_backend(config) != BACKEND:
        return f"its backend is '{config.backend or config.platform}', and plans are built from the graphs of '{BACKEND}'"
    inputs = [(tensor.name, tensor.data_type, len(tensor.dims)) for tensor in config.input]
    if inputs != [(INPUT, schema.TYPE_FP32, 3)]:
        return f"it takes {', '.join(name for name, _, _ in inputs)} and no images: it is small, and stays on ONNX Runtime"
    return None


def _planned(folder: Path, config: schema.ModelConfig, version: int, options: EngineOptions) -> PlannedEngine:
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
    except RepositoryError as error:  # of a number, which does not say where it comes from
        raise EngineError(f"{folder.name}@{version}: {error}") from error
    return PlannedEngine(folder.name, version, folder.parent / graph.path, graph.sha256, request)


def _current(one: PlannedEngine, target: Target) -> Manifest | None:
    """The manifest of the plan that is there, where it is what would be built now."""
    plan = one.graph.with_name(PLAN_FILE)
    try:
        manifest = read_manifest(one.graph.with_name(MANIFEST_FILE))
    except ManifestError:
        return None  # damaged: built anew
    if manifest is None or not plan.exists():
        return None
    # Another driver may run the same plan.
    wanted = {**asdict(target), "driver": manifest.driver, "onnx_sha256": one.onnx_sha256, **one.request.recorded}
    is_same = all(getattr(manifest, name) == value for name, value in wanted.items())
    return manifest if is_same and file_digest(plan) == manifest.plan_sha256 else None


def _real_images(one: PlannedEngine, data_dir: Path | None) -> Array:
    """Test images of the data that the graph names."""
    found = images_of_record(onnx.load_model_from_string(read_regular(one.graph)), one.name, data_dir)
    if found is None:
        raise EngineError(
            f"{one.graph} does not say which data its network was trained on, to compare its plan on: "
            "pass images (--images FILE.npy), or leave the comparison out (--no-compare)"
        )
    return found.images


def _batches(request: BuildRequest) -> str:
    profile = request.profile
    return f"{profile.min[0]} to {profile.max[0]}, best at {profile.opt[0]}"
