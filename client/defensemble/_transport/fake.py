"""A transport without a network, for tests and for trying things out."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._exceptions import ConnectionFailedError, ForbiddenError, ModelNotFoundError, RequestRefusedError
from .base import (
    Inputs,
    ModelMetadata,
    ModelState,
    ModelStatistics,
    OutputRequest,
    Outputs,
    ServerMetadata,
    TensorMetadata,
    Transport,
    version_text,
)


@dataclass(frozen=True)
class FakeModel:
    """A model that is a function from images (N, C, H, W) to its outputs by name, each of N rows.

    Its outputs are found by one call with a black image. `platform="ensemble"` and `steps` make it an ensemble; `config_is_open=False`
    keeps its configuration from callers; `preprocessing` is the parameter of that name in it. The function may raise errors of this
    package, as a server would cause them.
    """

    answer: Callable[[NDArray[np.float32]], Mapping[str, NDArray[Any]]]
    image_shape: tuple[int, int, int]
    class_names: Sequence[str] = ()
    max_batch_size: int = 64
    platform: str = ""
    steps: Sequence[str] = ()
    config_is_open: bool = True
    preprocessing: str | None = None
    outputs: Mapping[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        outputs = self.answer(np.zeros((1, *self.image_shape), np.float32))
        object.__setattr__(self, "outputs", {name: value.shape[1:] for name, value in outputs.items()})


class FakeTransport(Transport):
    """Serves functions as a Triton server would serve models; `Client("fake", transport=FakeTransport({...}))`.

    `calls` counts inferences by model, `images` the images in them, and `requests` holds model, outputs and timeout of each;
    the one inference for a model's class names is among them. All models are loaded at first, as version 1; an ensemble needs those of its
    steps that are there, as on a server: it goes with them, comes back with them, and is loaded with them. A closed one refuses calls.
    """

    def __init__(self, models: Mapping[str, FakeModel], url: str = "fake://server") -> None:
        self._models = dict(models)
        self._url = url
        self._closed = False
        self._unloaded: set[str] = set()
        self._statistics: dict[str, ModelStatistics] = {}
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        self.images: Counter[str] = Counter()
        self.requests: list[tuple[str, tuple[OutputRequest, ...], float]] = []

    @property
    def url(self) -> str:
        return self._url

    def infer(self, model: str, inputs: Inputs, outputs: Sequence[OutputRequest], timeout_s: float, version: int | None = None) -> Outputs:
        served = self._model(model, version)
        images = inputs["images"]
        with self._lock:
            self.calls[model] += 1
            self.images[model] += len(images)
            self.requests.append((model, tuple(outputs), timeout_s))
        if len(images) > served.max_batch_size > 0:
            raise RequestRefusedError(f"{self._url}: batch-size must be <= {served.max_batch_size} for {model!r}, got {len(images)}")
        if images.shape[1:] != served.image_shape:
            raise RequestRefusedError(f"{self._url}: unexpected shape {images.shape} for {model!r}")
        with self._lock:
            before = self._done_by(model)
            self._statistics[model] = ModelStatistics(model, 1, before.requests + 1, before.executions + 1, time.time_ns() // 1_000_000)
        answers = served.answer(images)
        chosen: dict[str, NDArray[Any]] = {}
        for output in outputs:
            if output.name not in answers:
                raise RequestRefusedError(f"{self._url}: unexpected inference output {output.name!r} for {model!r}")
            value = np.array(answers[output.name])
            chosen[output.name] = _classes(value, served.class_names, output.class_count) if output.class_count else value
        return chosen

    def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        served = self._model(model)
        outputs = tuple(TensorMetadata(name, "FP32", (-1, *shape)) for name, shape in served.outputs.items())
        return ModelMetadata(model, served.platform, (TensorMetadata("images", "FP32", (-1, *served.image_shape)),), outputs)

    def model_config(self, model: str, timeout_s: float, version: int | None = None) -> dict[str, Any]:
        served = self._model(model, version)
        if not served.config_is_open:
            raise ForbiddenError(f"{self._url} keeps the configuration of model {model!r} to itself")
        return {
            "name": model,
            "platform": served.platform,
            "max_batch_size": served.max_batch_size,
            "ensemble_scheduling": {"step": [{"model_name": step} for step in served.steps]},
            "parameters": {} if served.preprocessing is None else {"preprocessing": {"string_value": served.preprocessing}},
        }

    def repository_index(self, timeout_s: float) -> list[ModelState]:
        self._check_open()
        with self._lock:
            return [
                ModelState(name, 1, "READY", "") if self._serves(name) else ModelState(name, 1, "UNAVAILABLE", "unloaded")
                for name in sorted(self._models)
            ]

    def load_model(self, model: str, timeout_s: float) -> None:
        """Serves a model, and the steps of an ensemble; what it did before an unload is forgotten."""
        self._check_open()
        if model not in self._models:
            raise RequestRefusedError(f"{self._url}: failed to load {model!r}, failed to poll from model repository")
        with self._lock:
            self._unloaded -= {model, *self._needs(model)}

    def unload_model(self, model: str, timeout_s: float) -> None:
        self._check_open()
        with self._lock:
            self._unloaded.add(model)
            self._statistics = {name: done for name, done in self._statistics.items() if self._serves(name)}

    def statistics(self, timeout_s: float) -> list[ModelStatistics]:
        """What each loaded model has done, by name; each call that it could run is a request, and ran alone."""
        self._check_open()
        with self._lock:
            return [self._done_by(name) for name in sorted(self._models) if self._serves(name)]

    def server_metadata(self, timeout_s: float) -> ServerMetadata:
        self._check_open()
        return ServerMetadata("fake", "0")

    def live(self, timeout_s: float) -> bool:
        self._check_open()
        return True

    def ready(self, timeout_s: float) -> bool:
        self._check_open()
        return True

    def close(self) -> None:
        self._closed = True

    def _model(self, name: str, version: int | None = None) -> FakeModel:
        self._check_open()
        if version is not None and version_text(version) != "1":
            raise ModelNotFoundError(f"{self._url}: Request for unknown model: {name!r} version {version} is not found")
        if not self._serves(name):
            told = "has no available versions" if name in self._models else "is not found"
            raise ModelNotFoundError(f"{self._url}: Request for unknown model: {name!r} {told}")
        return self._models[name]

    def _serves(self, name: str) -> bool:
        return name in self._models and self._unloaded.isdisjoint({name, *self._needs(name)})

    def _done_by(self, name: str) -> ModelStatistics:
        return self._statistics.get(name) or ModelStatistics(name, 1, 0, 0, 0)

    def _needs(self, name: str) -> set[str]:
        """The models that an ensemble runs; a fused graph runs none."""
        model = self._models.get(name)
        return set(model.steps) & set(self._models) if model is not None and model.platform == "ensemble" else set()

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionFailedError(f"{self._url} is closed")


def _classes(values: NDArray[Any], names: Sequence[str], count: int) -> NDArray[Any]:
    """What Triton's classification extension answers: the `count` largest values of each row, as `value:index:name` in bytes."""
    rows = []
    for row in values:
        largest = np.argsort(-row, kind="stable")[:count]
        rows.append([f"{row[i]:f}:{i}" + (f":{names[i]}" if i < len(names) else "") for i in largest])
    texts: NDArray[Any] = np.array([[text.encode() for text in row] for row in rows], dtype=object)
    return texts
