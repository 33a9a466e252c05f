"""A transport without a network, for tests and for trying things out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defensemble._exceptions import ConnectionFailedError, ForbiddenError, ModelNotFoundError, RequestRefusedError
from defensemble._transport import ModelMetadata, OutputRequest, ServerMetadata, TensorMetadata


@dataclass(frozen=True)
class FakeModel:
    """A model that is a function from images (N, C, H, W) to its outputs by name, each of N rows.

    Its outputs are found by one call with a black image. `platform="ensemble"` and `steps` make it an ensemble; `config_is_open=False`
    keeps its configuration from callers. The function may raise errors of this package, as a server would cause them.
    """

    answer: Callable[[NDArray[np.float32]], Mapping[str, NDArray[Any]]]
    image_shape: tuple[int, int, int]
    class_names: Sequence[str] = ()
    max_batch_size: int = 64
    platform: str = ""
    steps: Sequence[str] = ()
    config_is_open: bool = True
    outputs: Mapping[str, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        outputs = self.answer(np.zeros((1, *self.image_shape), np.float32))
        object.__setattr__(self, "outputs", {name: value.shape[1:] for name, value in outputs.items()})


class FakeTransport:
    """Serves functions as a Triton server would serve models; `Client("fake", transport=FakeTransport({...}))`.

    `calls` counts inferences by model, `images` the images in them, and `requests` holds model, outputs and timeout of each;
    the one inference for a model's class names is among them. A closed one refuses calls.
    """

    def __init__(self, models: Mapping[str, FakeModel], url: str = "fake://server") -> None:
        self._models = dict(models)
        self._url = url
        self._closed = False
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        self.images: Counter[str] = Counter()
        self.requests: list[tuple[str, tuple[OutputRequest, ...], float]] = []

    @property
    def url(self) -> str:
        """The name that stands for a URL in messages."""
        return self._url

    def infer(
        self, model: str, inputs: Mapping[str, NDArray[np.float32]], outputs: Sequence[OutputRequest], timeout_s: float
    ) -> dict[str, NDArray[Any]]:
        """Calls a model's function."""
        served = self._model(model)
        images = inputs["images"]
        with self._lock:
            self.calls[model] += 1
            self.images[model] += len(images)
            self.requests.append((model, tuple(outputs), timeout_s))
        if len(images) > served.max_batch_size > 0:
            raise RequestRefusedError(f"{self._url}: batch-size must be <= {served.max_batch_size} for {model!r}, got {len(images)}")
        if images.shape[1:] != served.image_shape:
            raise RequestRefusedError(f"{self._url}: unexpected shape {images.shape} for {model!r}")
        answers = served.answer(images)
        chosen: dict[str, NDArray[Any]] = {}
        for output in outputs:
            if output.name not in answers:
                raise RequestRefusedError(f"{self._url}: unexpected inference output {output.name!r} for {model!r}")
            value = np.array(answers[output.name])
            chosen[output.name] = _classes(value, served.class_names, output.class_count) if output.class_count else value
        return chosen

    def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        """What the server tells everyone about a model."""
        served = self._model(model)
        outputs = tuple(TensorMetadata(name, "FP32", (-1, *shape)) for name, shape in served.outputs.items())
        return ModelMetadata(model, served.platform, (TensorMetadata("images", "FP32", (-1, *served.image_shape)),), outputs)

    def model_config(self, model: str, timeout_s: float) -> dict[str, Any]:
        """The model's configuration as JSON."""
        served = self._model(model)
        if not served.config_is_open:
            raise ForbiddenError(f"{self._url} keeps the configuration of model {model!r} to itself")
        return {
            "name": model,
            "platform": served.platform,
            "max_batch_size": served.max_batch_size,
            "ensemble_scheduling": {"step": [{"model_name": step} for step in served.steps]},
        }

    def models(self, timeout_s: float) -> list[str]:
        """Names of the models, sorted."""
        self._check_open()
        return sorted(self._models)

    def server_metadata(self, timeout_s: float) -> ServerMetadata:
        """A name and a version that no server has."""
        self._check_open()
        return ServerMetadata("fake", "0")

    def live(self, timeout_s: float) -> bool:
        """Always, until it is closed."""
        self._check_open()
        return True

    def ready(self, timeout_s: float) -> bool:
        """Always, until it is closed."""
        self._check_open()
        return True

    def close(self) -> None:
        """Refuses calls from now on."""
        self._closed = True

    def _model(self, name: str) -> FakeModel:
        self._check_open()
        if name not in self._models:
            raise ModelNotFoundError(f"{self._url}: Request for unknown model: {name!r} is not found")
        return self._models[name]

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
