"""Recording doubles of TensorRT and of Polygraphy's runner: plain objects, in addition to the test of the same calls on the real bindings.

A "plan" is a mark, the settings and the ONNX file itself, so that "running" one can be ONNX Runtime.
"""

from __future__ import annotations

import enum
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

VERSION = "10.13.3.9"
GPU = ("NVIDIA H100 80GB HBM3", "9.0", "570.124.06")
MARK = b"plan of "


class BuilderFlag(enum.IntEnum):
    TF32 = 7
    VERSION_COMPATIBLE = 13


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class OnnxParserFlag(enum.IntEnum):
    NATIVE_INSTANCENORM = 0


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class HardwareCompatibilityLevel(enum.IntEnum):
    NONE = 0
    AMPERE_PLUS = 1


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ParserError:
    def __init__(self, node: str, operator: str, text: str) -> None:
        self._entry = (node, operator, text)

    def node_name(self) -> str:
        return self._entry[0]

    def node_operator(self) -> str:
        return self._entry[1]

    def desc(self) -> str:
        return self._entry[2]


class TimingCache:
    """Its bytes are a version and the names of what was timed, as in `10.13.3.9|a,b`."""

    def __init__(self, content: bytes) -> None:
        version, _, names = content.decode().partition("|")
        self.version = version or VERSION
        self.names = set(filter(None, names.split(",")))

    def combine(self, input_cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if input_cache.version != self.version:
            return False
        self.names |= input_cache.names
        return True

    def serialize(self) -> memoryview:
        return memoryview(f"{self.version}|{','.join(sorted(self.names))}".encode())


class FakeTensorRT:
    """What `import tensorrt` gives; `calls` holds every call and assignment, in order, and the attributes set what goes wrong."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.parser_errors: list[ParserError] = []
        self.log_entries: list[tuple[Severity, str]] = []
        self.plan: bytes | None = MARK
        self.added = 0
        self.times = "conv"
        self.during_build: Callable[[], None] = lambda: None
        self.cache: TimingCache | None = None

    def note(self, call: str) -> None:
        self.calls.append(call)

    def module(self) -> types.ModuleType:
        fake = self
        module: Any = types.ModuleType("tensorrt")

        class ILogger:
            def log(self, severity: Any, msg: str) -> None:
                raise NotImplementedError

        ILogger.Severity = Severity  # type: ignore[attr-defined]

        class Recorded:
            def __setattr__(self, name: str, value: Any) -> None:
                fake.note(f"{name} = {value!r}" if isinstance(value, (int, enum.Enum)) else name)
                object.__setattr__(self, name, value)

        class Config(Recorded):
            progress_monitor: Any

            def clear_flag(self, flag: BuilderFlag) -> None:
                fake.note(f"clear {flag.name}")

            def set_flag(self, flag: BuilderFlag) -> None:
                fake.note(f"set {flag.name}")

            def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
                fake.note(f"{pool.name} {pool_size}")

            def add_optimization_profile(self, profile: Any) -> int:
                return fake.added

            def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache | None:
                try:
                    return TimingCache(serialized_timing_cache)
                except UnicodeDecodeError:
                    return None

            def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
                assert ignore_mismatch is False
                fake.cache = cache if cache.version == VERSION else None
                return cache.version == VERSION

        class Profile:
            def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
                fake.note(f"profile {input} {min[0]} {opt[0]} {max[0]}")

        class Builder:
            def __init__(self, logger: ILogger) -> None:
                self.logger = logger

            def create_network(self, flags: int) -> Any:
                fake.note(f"network flags {flags}")
                return types.SimpleNamespace(onnx=b"")

            def create_builder_config(self) -> Config:
                return Config()

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: Any, config: Config) -> memoryview | None:
                fake.note("build")
                for severity, text in fake.log_entries:
                    self.logger.log(severity, text)
                config.progress_monitor.phase_start("Building Engine", None, 2)
                going_on = config.progress_monitor.step_complete("Building Engine", 0)
                fake.during_build()
                going_on = going_on and config.progress_monitor.step_complete("Building Engine", 1)
                config.progress_monitor.phase_finish("Building Engine")
                if fake.cache is not None:
                    fake.cache.names.add(fake.times)
                return None if fake.plan is None or not going_on else memoryview(fake.plan + network.onnx)

        class OnnxParser:
            def __init__(self, network: Any, logger: ILogger) -> None:
                self.network = network

            def set_flag(self, flag: OnnxParserFlag) -> None:
                fake.note(f"parser {flag.name}")

            def parse(self, model: bytes, path: str) -> bool:
                self.network.onnx = model
                return not fake.parser_errors

            @property
            def num_errors(self) -> int:
                return len(fake.parser_errors)

            def get_error(self, index: int) -> ParserError:
                return fake.parser_errors[index]

        module.__version__ = VERSION
        module.ILogger, module.IProgressMonitor = ILogger, type("IProgressMonitor", (), {})
        module.Builder, module.OnnxParser = Builder, OnnxParser
        for kind in (BuilderFlag, NetworkDefinitionCreationFlag, OnnxParserFlag, MemoryPoolType, HardwareCompatibilityLevel):
            setattr(module, kind.__name__, kind)
        return module  # type: ignore[no-any-return]


def install_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTensorRT:
    """Put the double in TensorRT's place, and a real `nvidia-smi` on PATH that lists one GPU."""
    fake = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", fake.module())
    install_gpu(monkeypatch, tmp_path, GPU)
    return fake


def install_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *gpus: tuple[str, str, str]) -> None:
    program = tmp_path / "driver" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{', '.join(gpu)}'\n" for gpu in gpus))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def install_runner(monkeypatch: pytest.MonkeyPatch, *, add: float = 0.0) -> None:
    """Put a double in Polygraphy's place, which runs the ONNX file inside a double's plan, and adds something to every first class."""

    class PolygraphyException(Exception):  # noqa: N818 - Polygraphy's own name
        pass

    class TrtRunner:
        def __init__(self, engine: bytes) -> None:
            self.engine = engine

        def __enter__(self) -> TrtRunner:
            if not self.engine.startswith(MARK):
                raise PolygraphyException("could not deserialize engine")
            self.session = onnxruntime.InferenceSession(self.engine.removeprefix(MARK), providers=["CPUExecutionProvider"])
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def infer(self, feed_dict: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
            names = [output.name for output in self.session.get_outputs()]
            answers = dict(zip(names, self.session.run(names, feed_dict), strict=True))
            answers[names[0]] = answers[names[0]] + np.eye(1, answers[names[0]].shape[1], dtype=np.float32) * np.float32(add)
            return answers

    class Verbosity:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

    logger = types.SimpleNamespace(WARNING=30, verbosity=lambda severity: Verbosity())
    trt: Any = types.ModuleType("polygraphy.backend.trt")
    trt.EngineFromBytes, trt.TrtRunner = (lambda content: content), TrtRunner
    exception: Any = types.ModuleType("polygraphy.exception")
    exception.PolygraphyException = PolygraphyException
    log: Any = types.ModuleType("polygraphy.logger")
    log.G_LOGGER = logger
    modules = {
        "polygraphy": types.ModuleType("polygraphy"),
        "polygraphy.backend": types.ModuleType("polygraphy.backend"),
        "polygraphy.backend.trt": trt,
        "polygraphy.exception": exception,
        "polygraphy.logger": log,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
