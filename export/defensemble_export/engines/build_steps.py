"""How a TensorRT plan is built: what was asked for, and the calls of TensorRT's API that do it.

TensorRT's own API and not Polygraphy's builder (0.53.6 was read): that one hands everything that TensorRT says to one logger of its own,
which prints, so an exception carries neither the parser's errors with their nodes nor why a build failed; it writes a timing cache in
place, gives one of another TensorRT to the builder as it is, and asks for detailed profiling. It serves where a plan is run:
``verify.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from defensemble_repository.plan_manifest import Profile
from defensemble_repository.reader import checked_batch_size

from ..errors import EngineError
from ..verification.tolerances import checked_precision
from .call_recorder import CallRecorder
from .timing_cache import attached_cache

INPUT = "images"
DEFAULT_BUILDER_LEVEL = 3  # TensorRT's own default, written down so that a manifest can say it
_LEVELS = range(6)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How plans are built. All take batches from 1 on: Triton hands on requests of one image too.

    ``opt_batch`` None is the largest batch. ``workspace_bytes`` None is all of the GPU's memory. ``builder_level`` is 0 (built fast) to 5
    (runs fastest). ``version_compatible`` plans run on newer TensorRT too, ``hardware_compatible`` ones on other GPUs of compute capability
    8.0 or newer.
    """

    opt_batch: int | None = None
    builder_level: int = DEFAULT_BUILDER_LEVEL
    workspace_bytes: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False


@dataclass(frozen=True)
class BuildRequest(EngineOptions):
    """What a plan is built for: images of (C, H, W), 1 to ``max_batch_size`` at once, or that many alone (``fixed_batch``)."""

    image_shape: tuple[int, int, int]
    max_batch_size: int
    precision: str = "fp32"
    fixed_batch: bool = False

    def __post_init__(self) -> None:
        checked_batch_size(self.max_batch_size, "max_batch_size")
        checked_precision(self.precision)
        if self.builder_level not in _LEVELS:
            raise EngineError(f"the builder's level must be 0 (built fast) to 5 (runs fastest), got {self.builder_level}")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise EngineError(f"the workspace must be at least 1 byte, got {self.workspace_bytes}")
        _ = self.profile

    @property
    def profile(self) -> Profile:
        """The shapes that the plan will take."""
        batches = [1, self.max_batch_size if self.opt_batch is None else self.opt_batch, self.max_batch_size]
        if self.fixed_batch:
            batches = [self.max_batch_size] * 3
        smallest, best, largest = ((batch, *self.image_shape) for batch in batches)
        return Profile(smallest, best, largest)

    @property
    def recorded(self) -> dict[str, Any]:
        """What a manifest keeps of it, by the manifest's names."""
        names = ("profile", "precision", "builder_level", "workspace_bytes", "version_compatible", "hardware_compatible")
        return {name: getattr(self, name) for name in names}


class Messages:
    """What TensorRT reported as errors, and what interrupted it: its callbacks must not raise."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.interruption: BaseException | None = None

    def last(self) -> str:
        """The newest errors."""
        return "; ".join(self.errors[-3:]) or "nothing"


def build(
    trt: Any,
    request: BuildRequest,
    model: Any,
    path: Any,
    *,
    logger: Any,
    monitor: Any,
    attach_timings: Callable[[Any], Any] | None = None,
    messages: Messages,
) -> Any:
    """Build a plan: all calls of TensorRT's module ``trt`` that it takes, but for the logger, the monitor and the timing cache.

    ``model`` are the bytes of the ONNX file ``path``, ``attach_timings`` is called with the builder's configuration, ``messages`` is what
    the logger has received. Returns a buffer, or None where the build failed; EngineError where TensorRT refuses the graph or profile.
    """
    builder = trt.Builder(logger=logger)
    # TensorRT 11 knows no other networks, and takes the flag: https://docs.nvidia.com/deeplearning/tensorrt, migrating from 10.x to 11.x.
    network = builder.create_network(flags=1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED.value)
    parser = trt.OnnxParser(network=network, logger=logger)
    if request.version_compatible or request.hardware_compatible:
        # The other implementation is a plugin, which is bound to this version and GPU.
        parser.set_flag(flag=trt.OnnxParserFlag.NATIVE_INSTANCENORM)
    if not parser.parse(model=model, path=path):
        raise EngineError(f"TensorRT cannot read {path}:\n  " + "\n  ".join(_parser_errors(parser) or messages.errors))
    config = builder.create_builder_config()
    config.progress_monitor = monitor
    config.builder_optimization_level = request.builder_level
    # On by default, it rounds the factors of float32 convolutions to 10 bits: the tolerance of fp32 is 1e-5.
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
        raise EngineError(f"TensorRT refuses the profile {shapes} for {path}: {messages.last()}")
    if attach_timings is not None:
        attach_timings(config)
    return builder.build_serialized_network(network=network, config=config)


def build_calls(request: BuildRequest) -> list[str]:
    """Return all calls of TensorRT's API that a build of `request` makes, in their order; nothing is built, and TensorRT is not needed."""
    calls: list[str] = []
    model, path, logger, monitor, timings = (CallRecorder(name, calls) for name in ("onnx", "path", "logger", "monitor", "timings"))
    trt, attach = CallRecorder("tensorrt", calls), lambda config: attached_cache(config, timings)
    build(trt, request, model, path, logger=logger, monitor=monitor, attach_timings=attach, messages=Messages())
    return calls


def _parser_errors(parser: Any) -> list[str]:
    """Every error of the parser with the node that it is about."""
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        lines.append(f"node '{error.node_name()}' ({error.node_operator()}): {error.desc()}")
    return lines
