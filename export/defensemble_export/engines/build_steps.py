"""Build a TensorRT plan: the build request, and the calls of TensorRT's API.

Polygraphy's builder (as of 0.53.6) is not used: it sends all messages of TensorRT to a global logger that prints, so an exception contains
neither the parser's errors with their nodes nor the reason of a failed build; it writes a timing cache in place, passes the cache of
another TensorRT version to the builder, and enables detailed profiling. Polygraphy runs plans in `verify.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from defensemble_repository.plan_manifest import OptimizationProfile
from defensemble_repository.reader import checked_batch_size

from ..errors import EngineError
from ..verification.tolerances import checked_precision
from .call_recorder import CallRecorder
from .timing_cache import attach_cache

INPUT = "images"
DEFAULT_BUILDER_LEVEL = 3  # TensorRT's own default, explicit here because it is written to the manifest
_LEVELS = range(6)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How to build plans. All plans accept batches from 1 on, because Triton also passes requests with one image.

    Args:
        opt_batch: The batch to optimise for. None: the largest batch.
        builder_level: Optimisation level of the builder, 0 (fastest build) to 5 (fastest plan).
        workspace_bytes: GPU memory that a build may use. None: all of it.
        version_compatible: The plan also runs on newer versions of TensorRT.
        hardware_compatible: The plan also runs on other GPUs of compute capability 8.0 or newer.

    Example:
        >>> build_engines(Path("model_repository"), options=EngineOptions(opt_batch=8, builder_level=5))
    """

    opt_batch: int | None = None
    builder_level: int = DEFAULT_BUILDER_LEVEL
    workspace_bytes: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False


@dataclass(frozen=True)
class BuildRequest(EngineOptions):
    """What to build: a plan for images of (C, H, W) in batches of 1 to `max_batch_size`, or only of that size (`fixed_batch`)."""

    image_shape: tuple[int, int, int]
    max_batch_size: int
    precision: str = "fp32"
    fixed_batch: bool = False

    def __post_init__(self) -> None:
        checked_batch_size(self.max_batch_size, "max_batch_size")
        checked_precision(self.precision)
        if self.builder_level not in _LEVELS:
            raise EngineError(f"builder_level must be 0 (fastest build) to 5 (fastest plan), got {self.builder_level}")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise EngineError(f"workspace_bytes must be at least 1, got {self.workspace_bytes}")
        _ = self.profile

    @property
    def profile(self) -> OptimizationProfile:
        """The shapes that the plan accepts."""
        batches = [1, self.max_batch_size if self.opt_batch is None else self.opt_batch, self.max_batch_size]
        if self.fixed_batch:
            batches = [self.max_batch_size] * 3
        smallest, best, largest = ((batch, *self.image_shape) for batch in batches)
        return OptimizationProfile(smallest, best, largest)

    @property
    def recorded(self) -> dict[str, Any]:
        """The values that a manifest records, by their names in the manifest."""
        names = ("profile", "precision", "builder_level", "workspace_bytes", "version_compatible", "hardware_compatible")
        return {name: getattr(self, name) for name in names}


class Messages:
    """The errors that TensorRT reported, and the exception that interrupted it: its callbacks must not raise."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.interruption: BaseException | None = None

    def last(self) -> str:
        """Return the last errors."""
        return "; ".join(self.errors[-3:]) or "nothing"


def build(
    trt: Any,
    request: BuildRequest,
    model: Any,
    path: Any,
    *,
    logger: Any,
    monitor: Any,
    attach_timing_cache: Callable[[Any], Any] | None = None,
    messages: Messages,
) -> Any:
    """Build a plan, with all calls of TensorRT's API except those for the logger, the monitor and the timing cache.

    Args:
        trt: The module `tensorrt`.
        request: What to build.
        model: The bytes of the ONNX file.
        path: Its path.
        logger: TensorRT's logger.
        monitor: TensorRT's progress monitor.
        attach_timing_cache: Called with the builder's configuration.
        messages: What the logger has received.

    Returns:
        A buffer, or None if the build failed.

    Raises:
        EngineError: TensorRT rejects the graph or the profile.
    """
    builder = trt.Builder(logger=logger)
    # TensorRT 11 has only strongly typed networks, and still accepts the flag (migrating from 10.x to 11.x):
    # https://docs.nvidia.com/deeplearning/tensorrt
    network = builder.create_network(flags=1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED.value)
    parser = trt.OnnxParser(network=network, logger=logger)
    if request.version_compatible or request.hardware_compatible:
        # The other implementation is a plugin, which depends on this version and GPU.
        parser.set_flag(flag=trt.OnnxParserFlag.NATIVE_INSTANCENORM)
    if not parser.parse(model=model, path=path):
        raise EngineError(f"TensorRT cannot read {path}:\n  " + "\n  ".join(_parser_errors(parser) or messages.errors))
    config = builder.create_builder_config()
    config.progress_monitor = monitor
    config.builder_optimization_level = request.builder_level
    # TF32 is on by default and rounds the factors of float32 convolutions to 10 bits; the tolerance of fp32 is 1e-5.
    config.clear_flag(flag=trt.BuilderFlag.TF32)
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(pool=trt.MemoryPoolType.WORKSPACE, pool_size=request.workspace_bytes)
    if request.version_compatible:
        config.set_flag(flag=trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    profile = builder.create_optimization_profile()
    shapes = request.profile
    profile.set_shape(input=INPUT, min=shapes.min, opt=shapes.opt, max=shapes.max)
    if config.add_optimization_profile(profile=profile) < 0:
        raise EngineError(
            f"TensorRT rejects the optimization profile {shapes} for {path}: {messages.last()}; choose other batches (--opt-batch)"
        )
    if attach_timing_cache is not None:
        attach_timing_cache(config)
    return builder.build_serialized_network(network=network, config=config)


def build_calls(request: BuildRequest) -> list[str]:
    """Return the calls of TensorRT's API that a build makes, in order. Nothing is built, and TensorRT is not needed."""
    calls: list[str] = []
    model, path, logger, monitor, timings = (CallRecorder(name, calls) for name in ("onnx", "path", "logger", "monitor", "timings"))
    trt, attach = CallRecorder("tensorrt", calls), lambda config: attach_cache(config, timings)
    build(trt, request, model, path, logger=logger, monitor=monitor, attach_timing_cache=attach, messages=Messages())
    return calls


def _parser_errors(parser: Any) -> list[str]:
    """Return every error of the parser, with its node."""
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        lines.append(f"node '{error.node_name()}' ({error.node_operator()}): {error.desc()}")
    return lines
