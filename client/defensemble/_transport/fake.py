"""A transport without a network, for tests and experiments."""

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
    NO_HEADERS,
    Inputs,
    ModelMetadata,
    ModelState,
    ModelStatistics,
    OutputRequest,
    Outputs,
    ServerMetadata,
    TensorMetadata,
    Transport,
    format_version,
)


@dataclass(frozen=True)
class FakeModel:
    """A model of a `FakeTransport`: a Python function.

    Args:
        answer: Returns the outputs by name, each of N rows, for images (N, C, H, W). One call with a black image determines their shapes.
            It may raise the errors of this package, as a server would cause them.
        image_shape: (C, H, W) of an image.
        class_names: Names of the classes; empty for none.
        max_batch_size: The largest batch; 0 for no limit.
        platform: `ensemble` for an ensemble.
        steps: Names of the models that an ensemble runs.
        config_is_open: Whether callers may read the configuration.
        preprocessing: The parameter of that name in the configuration.

    Example:
        >>> FakeModel(lambda images: {"logits": images.mean(axis=(2, 3))}, image_shape=(3, 8, 8), class_names=("red", "green", "blue"))
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
    """Serve Python functions the way a Triton server serves models.

    All models are loaded at first, as version 1. As on a server, an ensemble is loaded with the models of its steps, and is unloaded
    with them. A closed transport raises errors.

    Attributes:
        calls: Number of inferences by model, the one inference for a model's class names included.
        images: Number of images in them, by model.
        requests: Model, outputs and timeout of each inference.

    Example:
        >>> double = FakeModel(lambda images: {"logits": 2 * images.mean(axis=(2, 3))}, image_shape=(3, 8, 8))
        >>> client = Client("fake", "double", transport=FakeTransport({"double": double}))
    """

    def __init__(self, models: Mapping[str, FakeModel], url: str = "fake://server") -> None:
        self._models = dict(models)
        self._url = url
        self._is_closed = False
        self._unloaded: set[str] = set()
        self._statistics: dict[str, ModelStatistics] = {}
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        self.images: Counter[str] = Counter()
        self.requests: list[tuple[str, tuple[OutputRequest, ...], float]] = []

    @property
    def url(self) -> str:
        return self._url

    def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Sequence[OutputRequest],
        timeout_s: float,
        version: int | None = None,
        *,
        request_id: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Outputs:
        fake = self._find_model(model, version)
        images = inputs["images"]
        with self._lock:
            self.calls[model] += 1
            self.images[model] += len(images)
            self.requests.append((model, tuple(outputs), timeout_s))
        if len(images) > fake.max_batch_size > 0:
            raise RequestRefusedError(f"{self._url}: batch-size must be <= {fake.max_batch_size} for {model!r}, got {len(images)}")
        if images.shape[1:] != fake.image_shape:
            raise RequestRefusedError(f"{self._url}: unexpected shape {images.shape} for {model!r}")
        with self._lock:
            before = self._statistics_of(model)
            self._statistics[model] = ModelStatistics(model, 1, before.requests + 1, before.executions + 1, time.time_ns() // 1_000_000)
        values_by_name = fake.answer(images)
        requested: dict[str, NDArray[Any]] = {}
        for output in outputs:
            if output.name not in values_by_name:
                raise RequestRefusedError(f"{self._url}: unexpected inference output {output.name!r} for {model!r}")
            value = np.array(values_by_name[output.name])
            requested[output.name] = _classification_strings(value, fake.class_names, output.class_count) if output.class_count else value
        return Outputs(requested, "1")

    def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        fake = self._find_model(model)
        outputs = tuple(TensorMetadata(name, "FP32", (-1, *shape)) for name, shape in fake.outputs.items())
        return ModelMetadata(model, fake.platform, (TensorMetadata("images", "FP32", (-1, *fake.image_shape)),), outputs)

    def model_config(self, model: str, timeout_s: float, version: int | None = None) -> dict[str, Any]:
        fake = self._find_model(model, version)
        if not fake.config_is_open:
            raise ForbiddenError(f"{self._url} restricts the configuration of model {model!r}")
        return {
            "name": model,
            "platform": fake.platform,
            "max_batch_size": fake.max_batch_size,
            "ensemble_scheduling": {"step": [{"model_name": step} for step in fake.steps]},
            "parameters": {} if fake.preprocessing is None else {"preprocessing": {"string_value": fake.preprocessing}},
        }

    def repository_index(self, timeout_s: float) -> list[ModelState]:
        self._check_open()
        with self._lock:
            return [
                ModelState(name, 1, "READY", "") if self._is_served(name) else ModelState(name, 1, "UNAVAILABLE", "unloaded")
                for name in sorted(self._models)
            ]

    def load_model(self, model: str, timeout_s: float) -> None:
        """Load a model, and the steps of an ensemble. Statistics start again after an unload."""
        self._check_open()
        if model not in self._models:
            raise RequestRefusedError(f"{self._url}: failed to load {model!r}, failed to poll from model repository")
        with self._lock:
            self._unloaded -= {model, *self._required_models(model)}

    def unload_model(self, model: str, timeout_s: float) -> None:
        self._check_open()
        with self._lock:
            self._unloaded.add(model)
            self._statistics = {name: done for name, done in self._statistics.items() if self._is_served(name)}

    def statistics(self, timeout_s: float) -> list[ModelStatistics]:
        """Return the statistics of each loaded model, by name. Each valid call counts as one request and one execution."""
        self._check_open()
        with self._lock:
            return [self._statistics_of(name) for name in sorted(self._models) if self._is_served(name)]

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
        self._is_closed = True

    def _find_model(self, name: str, version: int | None = None) -> FakeModel:
        self._check_open()
        if version is not None and format_version(version) != "1":
            raise ModelNotFoundError(f"{self._url}: Request for unknown model: {name!r} version {version} is not found")
        if not self._is_served(name):
            state = "has no available versions" if name in self._models else "is not found"
            raise ModelNotFoundError(f"{self._url}: Request for unknown model: {name!r} {state}")
        return self._models[name]

    def _is_served(self, name: str) -> bool:
        return name in self._models and self._unloaded.isdisjoint({name, *self._required_models(name)})

    def _statistics_of(self, name: str) -> ModelStatistics:
        return self._statistics.get(name) or ModelStatistics(name, 1, 0, 0, 0)

    def _required_models(self, name: str) -> set[str]:
        """Return the models that an ensemble runs; a fused graph runs none."""
        model = self._models.get(name)
        return set(model.steps) & set(self._models) if model is not None and model.platform == "ensemble" else set()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ConnectionFailedError(f"{self._url} is closed")


def _classification_strings(values: NDArray[Any], names: Sequence[str], count: int) -> NDArray[Any]:
    """Return what Triton's classification extension returns: the `count` largest values of each row, as `value:index:name` in bytes."""
    rows = []
    for row in values:
        largest = np.argsort(-row, kind="stable")[:count]
        rows.append([f"{row[i]:f}:{i}" + (f":{names[i]}" if i < len(names) else "") for i in largest])
    strings: NDArray[Any] = np.array([[text.encode() for text in row] for row in rows], dtype=object)
    return strings
