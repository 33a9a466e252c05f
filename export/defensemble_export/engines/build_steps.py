"""How a TensorRT plan is to be built: what was asked for, and the calls of TensorRT's API that do it, computed without TensorRT.

TensorRT's own API and not Polygraphy's builder (0.53.6 was read): that one hands everything that TensorRT says to one logger of its own,
which prints, so an exception carries neither the parser's errors with their nodes nor why a build failed; it writes a timing cache in
place, gives one of another TensorRT to the builder as it is, and asks for detailed profiling. It serves where a plan is run:
``verify.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from defensemble_repository.plan_manifest import Profile
from defensemble_repository.reader import checked_batch

from ..errors import EngineError
from ..verification.tolerances import checked_precision

INPUT = "images"
DEFAULT_BUILDER_LEVEL = 3  # TensorRT's own default, written down so that a manifest can say it
_LEVELS = range(6)


@dataclass(frozen=True)
class BuildRequest:
    """What a plan is built for: images of (C, H, W), and at once so many of them; the options are those of `defensemble build-engine`.

    ``opt_batch`` None is ``max_batch_size``. ``workspace_bytes`` None lets the builder take what the GPU has. ``fixed_batch`` says that the
    graph takes ``max_batch_size`` images and no other number.
    """

    image_shape: tuple[int, int, int]
    max_batch_size: int
    min_batch: int = 1
    opt_batch: int | None = None
    precision: str = "fp32"
    builder_level: int = DEFAULT_BUILDER_LEVEL
    workspace_bytes: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    fixed_batch: bool = False

    def __post_init__(self) -> None:
        checked_batch(self.max_batch_size, "max_batch_size")
        checked_precision(self.precision)
        if self.builder_level not in _LEVELS:
            raise EngineError(f"the builder's level must be 0 (built fast) to 5 (runs fastest), got {self.builder_level}")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise EngineError(f"the workspace must be at least 1 byte, got {self.workspace_bytes}")
        _ = self.profile

    @property
    def profile(self) -> Profile:
        """The shapes that the plan will take."""
        batches = [self.min_batch, self.max_batch_size if self.opt_batch is None else self.opt_batch, self.max_batch_size]
        if self.fixed_batch:
            batches = [self.max_batch_size] * 3
        smallest, best, largest = ((batch, *self.image_shape) for batch in batches)
        return Profile(smallest, best, largest)


@dataclass(frozen=True)
class Constant:
    """A member of one of TensorRT's enumerations."""

    enumeration: str
    member: str

    def __str__(self) -> str:
        return f"{self.enumeration}.{self.member}"


@dataclass(frozen=True)
class Bit:
    """The bit of a flag that is combined with others by "or"."""

    flag: Constant

    def __str__(self) -> str:
        return f"1 << {self.flag}"


@dataclass(frozen=True)
class Result:
    """What an earlier call gave, or what was given to the builder: ``logger``, ``monitor``, ``onnx`` and ``timings`` (bytes), ``path``."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Call:
    """``gives = target.name(**arguments)``; the target is a result, or, where it is empty, TensorRT's module."""

    target: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    gives: str = ""

    def __str__(self) -> str:
        arguments = ", ".join(f"{key}={value}" for key, value in self.arguments.items())
        call = f"{self.target or 'tensorrt'}.{self.name}({arguments})"
        return f"{self.gives} = {call}" if self.gives else call


@dataclass(frozen=True)
class Assignment:
    """``target.name = value``."""

    target: str
    name: str
    value: Any

    def __str__(self) -> str:
        return f"{self.target}.{self.name} = {self.value}"


Step = Call | Assignment

_NETWORK = (
    Call("", "Builder", {"logger": Result("logger")}, "builder"),
    # TensorRT 11 knows no other networks, and takes the flag: https://docs.nvidia.com/deeplearning/tensorrt, migrating from 10.x to 11.x.
    Call("builder", "create_network", {"flags": Bit(Constant("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"))}, "network"),
    Call("", "OnnxParser", {"network": Result("network"), "logger": Result("logger")}, "parser"),
)
# Run again with no timings where those on the disk are of another TensorRT or GPU.
TIMING_STEPS = (
    Call("config", "create_timing_cache", {"serialized_timing_cache": Result("timings")}, "cache"),
    Call("config", "set_timing_cache", {"cache": Result("cache"), "ignore_mismatch": False}, "attached"),
)
BUILD = Call("builder", "build_serialized_network", {"network": Result("network"), "config": Result("config")}, "plan")


def network_steps(request: BuildRequest) -> list[Step]:
    """From nothing to a parsed network."""
    native = Call("parser", "set_flag", {"flag": Constant("OnnxParserFlag", "NATIVE_INSTANCENORM")})
    return [
        *_NETWORK,
        # The other implementation is a plugin, which is bound to this version and GPU.
        *([native] if request.version_compatible or request.hardware_compatible else []),
        Call("parser", "parse", {"model": Result("onnx"), "path": Result("path")}, "parsed"),
    ]


def config_steps(request: BuildRequest) -> list[Step]:
    """The builder's configuration, all but the timing cache."""
    profile = request.profile
    shapes = {"input": INPUT, "min": profile.min, "opt": profile.opt, "max": profile.max}
    steps: list[Step] = [
        Call("builder", "create_builder_config", {}, "config"),
        Assignment("config", "progress_monitor", Result("monitor")),
        Assignment("config", "builder_optimization_level", request.builder_level),
        # On by default, it rounds the factors of float32 convolutions to 10 bits: the tolerance of fp32 is 1e-5.
        Call("config", "clear_flag", {"flag": Constant("BuilderFlag", "TF32")}),
    ]
    if request.workspace_bytes is not None:
        pool = {"pool": Constant("MemoryPoolType", "WORKSPACE"), "pool_size": request.workspace_bytes}
        steps.append(Call("config", "set_memory_pool_limit", pool))
    if request.version_compatible:
        steps.append(Call("config", "set_flag", {"flag": Constant("BuilderFlag", "VERSION_COMPATIBLE")}))
    if request.hardware_compatible:
        steps.append(Assignment("config", "hardware_compatibility_level", Constant("HardwareCompatibilityLevel", "AMPERE_PLUS")))
    return [
        *steps,
        Call("builder", "create_optimization_profile", {}, "profile"),
        Call("profile", "set_shape", shapes),
        Call("config", "add_optimization_profile", {"profile": Result("profile")}, "added"),
    ]


def build_plan(request: BuildRequest, *, timing_cache: bool = True) -> list[Step]:
    """All calls of a build, in their order: ``engine_from_onnx`` makes these and no others until the plan is there."""
    return [*network_steps(request), *config_steps(request), *(TIMING_STEPS if timing_cache else ()), BUILD]
