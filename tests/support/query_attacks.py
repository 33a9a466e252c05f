"""A small deterministic classifier, and runs of query attacks on it in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from defensemble.probes.base import Condition, ProbeImage, Query, QueryAttack
from defensemble.probes.lanes import AttackSettings, AttackTask, Finished, Lanes

Array = np.ndarray[Any, Any]
SHAPE = (1, 6, 6)
_GENERATOR = np.random.default_rng(3)
_WEIGHTS = _GENERATOR.normal(size=(36, 4)).astype(np.float32)
_IMAGES = (_GENERATOR.integers(0, 256, (12, *SHAPE)) / 255).astype(np.float32)


def probabilities(images: Array) -> Array:
    logits = np.stack([image.ravel() @ _WEIGHTS for image in np.asarray(images, np.float32)])  # rows do not depend on each other
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float64)


def classes(images: Array) -> Array:
    return np.asarray(probabilities(images).argmax(axis=1))


def margins(images: Array, labels: Array) -> Array:
    rows = np.arange(len(images))
    values = probabilities(images)
    true = values[rows, labels]
    values[rows, labels] = -1
    return np.asarray(true - values.max(axis=1))


def probe_image(number: int) -> ProbeImage:
    return ProbeImage(_IMAGES[number], int(classes(_IMAGES[number : number + 1])[0]), 100 + number)


def task(number: int, replay: Array | None = None) -> AttackTask:
    """Attack an image with a seed of its own."""
    return AttackTask(number, probe_image(number), 1000 + number, *([] if replay is None else [replay]))


def respond(attack: QueryAttack, images: Array, positions: Array) -> Array:
    """Return what the attack needs to know about queries of the images at these positions."""
    if attack.answer == "class":
        return classes(images)
    return margins(images, np.array([probe_image(position).label for position in positions.tolist()]))


@dataclass
class Log:
    """What one image's attack asked, the responses, and what it found."""

    queries: list[bytes]
    responses: list[Any]
    found: Finished


def run_lanes(settings: AttackSettings, tasks: list[AttackTask], answer: Callable[[Array], Array] | None = None) -> dict[int, Log]:
    """Run attacks in lanes of this process."""
    lanes = Lanes(settings)
    for one in tasks:
        lanes.start(one)
    queries: dict[int, list[bytes]] = {one.position: [] for one in tasks}
    responses: dict[int, list[Any]] = {one.position: [] for one in tasks}
    logs: dict[int, Log] = {}
    while len(logs) < len(tasks):
        questions, finished = lanes.run()
        assert questions or finished
        for found in finished:
            logs[found.position] = Log(queries[found.position], responses[found.position], found)
        for position, images in questions:
            assert images.dtype == np.float32
            assert len(images) <= settings.max_batch
            positions = np.full(len(images), position)
            values = respond(settings.attack, images, positions) if answer is None else answer(images)
            queries[position] += [image.tobytes() for image in images]
            responses[position] += values.tolist()
            lanes.answer(position, values)
    return logs


def image_of(query: bytes) -> Array:
    return np.frombuffer(query, np.float32).reshape(SHAPE)


@dataclass(frozen=True)
class Scripted(QueryAttack):
    """Asks random images in calls of given sizes."""

    sizes: tuple[int, ...] = (1,)
    scale: float = 1.0
    result: Literal["none", "unasked", "original"] = "none"
    problem: Literal["", "raise", "shape", "nan"] = ""

    name = "scripted"
    answer = "class"
    norm: Literal["l2", "linf"] = "l2"

    @property
    def title(self) -> str:
        return "Scripted"

    @property
    def threat_model(self) -> str:
        return "none"

    def conditions(self) -> list[Condition]:
        return []

    def most_queries(self, budget: int | None) -> int:
        return sum(self.sizes)

    def attack(self, image: ProbeImage, query: Query, seed: int) -> Array | None:
        generator = np.random.default_rng(seed)
        if self.problem == "raise":
            raise KeyError("a fault of this attack")
        for size in self.sizes:
            images = 0.5 + self.scale * (generator.random((size, *image.pixels.shape)) - 0.5)
            if self.problem == "nan":
                images[-1, 0, 0, 0] = np.nan
            assert query((images[:, 0] if self.problem == "shape" else images).astype(np.float32)).shape == (size,)
        if self.result == "unasked":
            return np.asarray(image.pixels + np.float32(0.5) * (generator.random(image.pixels.shape, np.float32) - image.pixels))
        return image.pixels if self.result == "original" else None
