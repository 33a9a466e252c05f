"""Runs the attacks of many images in turn in one process, so that their queries can be asked together.

A lane is a thread that runs the attack of one image. Exactly one thread runs at a time, and passes on when it has a query: an attack does
not notice the others. `attack_pool` runs this in several processes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Answer, InputType, ProbeImage, QueryAttack

Images = NDArray[np.float32]


@dataclass(frozen=True)
class AttackSettings:
    """What all images of an attack have in common.

    Attributes:
        attack: The attack.
        budget: Most queries of an image; None for no limit.
        input: Queries are rounded to k/255 if it is `8bit`, as is the image itself.
        max_batch: A call with more images is asked in parts of this size.
    """

    attack: QueryAttack
    budget: int | None
    input: InputType = "float32"
    max_batch: int = 64


@dataclass(frozen=True)
class AttackTask:
    """One image to attack.

    Attributes:
        position: Unique number of the image in this run.
        image: The image.
        seed: Seed of its attack, in [0, 2**32).
        replay: (m,): responses to its first m queries, which are not asked again.

    Example:
        >>> AttackTask(0, ProbeImage(pixels, label=3, row=17), seed=5)
    """

    position: int
    image: ProbeImage
    seed: int
    replay: NDArray[Any] = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class Finished:
    """The attack of an image has ended.

    Attributes:
        position: Number of the image.
        example: The closest misclassified query, as it was sent, within the attack's bound; None if there is none.
        distance: Norm of its perturbation; NaN if there is none.
        mean_square: Mean square of its perturbation; NaN if there is none.
        counted: Queries of the attack, replayed ones included.
        is_spent: Whether the attack asked for more queries than its budget, which ended it.
        trace: (queries, distance) at each improvement.
        excess: How far the attack's values were out of [0, 1] at most, before they were clipped.
    """

    position: int
    example: Images | None
    distance: float
    mean_square: float
    counted: int
    is_spent: bool
    trace: list[tuple[int, float]]
    excess: float


class _SpentError(BaseException):
    """The budget is spent: ends an attack from inside its query. Not an `Exception`, so that the attack does not catch it."""


class Lanes:
    """The attacks of many images in one process.

    `run` runs each attack until it has a query or ends. `answer` gives one the response to its query.

    Example:
        >>> lanes = Lanes(AttackSettings(Square(), budget=5000))
        >>> lanes.start(task)
        >>> questions, finished = lanes.run()
        >>> lanes.answer(*[(position, ask(images)) for position, images in questions][0])
    """

    def __init__(self, settings: AttackSettings) -> None:
        self._settings = settings
        self._lanes: dict[int, _Lane] = {}
        self._runnable: deque[_Lane] = deque()
        self._questions: list[tuple[int, Images]] = []
        self._finished: list[Finished] = []
        self._error: BaseException | None = None
        self._returned = _Baton()

    def start(self, task: AttackTask) -> None:
        """Add an image."""
        lane = _Lane(self._settings, task, self._ask)
        self._lanes[task.position] = lane
        self._runnable.append(lane)
        threading.Thread(target=self._run_lane, args=(lane,), daemon=True, name=f"attack {task.position}").start()

    def answer(self, position: int, answers: NDArray[Any]) -> None:
        """Give an attack the responses to its query.

        Args:
            position: Number of the image.
            answers: Responses to the images that `run` returned for it, in order.
        """
        lane = self._lanes[position]
        lane.answers = answers
        self._runnable.append(lane)

    def run(self) -> tuple[list[tuple[int, Images]], list[Finished]]:
        """Run until each attack has a query or has ended.

        Returns:
            The queries, each a position and images (k, C, H, W) with k at most `max_batch`; and the attacks that ended.
        """
        if self._runnable:
            self._pass_on()
            self._returned.wait()
        if self._error is not None:
            raise self._error
        questions, self._questions = self._questions, []
        finished, self._finished = self._finished, []
        return questions, finished

    def _pass_on(self) -> None:
        """Let the next lane run, or the caller of `run` if there is none."""
        (self._runnable.popleft().baton if self._runnable else self._returned).give()

    def _run_lane(self, lane: _Lane) -> None:
        lane.baton.wait()
        try:
            outcome = lane.attack()
            self._finished.append(outcome)  # `run` has replaced the list during the attack
        except BaseException as error:  # raised again by `run`, in the thread that can handle it
            self._error = error
        del self._lanes[lane.position]
        self._pass_on()

    def _ask(self, lane: _Lane, images: Images) -> NDArray[Any]:
        self._questions.append((lane.position, images))
        self._pass_on()
        lane.baton.wait()
        return lane.answers


class _Baton:
    """A binary semaphore, by a lock that one thread acquires and another one releases. `threading.Semaphore` is ten times slower."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.give: Callable[[], None] = self._lock.release
        self.wait: Callable[[], bool] = self._lock.acquire


class _Lane:
    """The attack of one image: its queries are encoded, counted and compared with the best one so far."""

    def __init__(self, settings: AttackSettings, task: AttackTask, ask: Callable[[_Lane, Images], NDArray[Any]]) -> None:
        self.position = task.position
        self.baton = _Baton()
        self.answers: NDArray[Any] = np.empty(0)
        self._settings = settings
        self._task = task
        self._ask = ask
        self._original = encode(task.image.pixels, settings.input)
        self._counted = 0
        self._best: Images | None = None
        self._distance = self._mean_square = float("nan")
        self._trace: list[tuple[int, float]] = []
        self._excess = 0.0

    def attack(self) -> Finished:
        attack = self._settings.attack
        is_spent = False
        try:
            example = attack.attack(replace(self._task.image, pixels=self._original), self.query, self._task.seed)
            # What is not closer than the best query would not change the result.
            if example is not None and self._is_closer(self._perturbation(self._encoded(example[None])[0])[0]):
                self.query(example[None])
        except _SpentError:
            is_spent = True
        return Finished(self.position, self._best, self._distance, self._mean_square, self._counted, is_spent, self._trace, self._excess)

    def query(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the responses to images, and end the attack if there are more of them than the budget allows."""
        encoded = self._encoded(images)
        budget = self._settings.budget
        room = len(encoded) if budget is None else budget - self._counted
        step = self._settings.max_batch
        answers = [self._answers(encoded[start : min(start + step, room)]) for start in range(0, min(len(encoded), room), step)]
        if len(encoded) > room:
            raise _SpentError
        return np.concatenate(answers) if answers else np.empty(0, answer_dtype(self._settings.attack.answer))

    def _answers(self, images: Images) -> NDArray[Any]:
        answers = self._task.replay[self._counted : self._counted + len(images)]
        if len(answers) < len(images):
            asked = self._ask(self, images[len(answers) :])
            answers = np.concatenate([answers, asked]) if len(answers) else asked
        answers = answers.astype(answer_dtype(self._settings.attack.answer), copy=False)
        is_wrong = answers != self._task.image.label if self._settings.attack.answer == "class" else answers < 0
        for index in np.flatnonzero(is_wrong):
            distance, mean_square = self._perturbation(images[index])
            if self._is_closer(distance):
                self._best, self._distance, self._mean_square = images[index].copy(), distance, mean_square
                self._trace.append((self._counted + int(index) + 1, distance))
        self._counted += len(images)
        return answers

    def _is_closer(self, distance: float) -> bool:
        bound = self._settings.attack.bound
        return (self._best is None or distance < self._distance) and (bound is None or distance <= bound)

    def _perturbation(self, image: Images) -> tuple[float, float]:
        """Return norm and mean square of the difference from the original."""
        return perturbation_size(image, self._original, self._settings.attack.norm, self._settings.input)

    def _encoded(self, images: NDArray[Any]) -> Images:
        """Return images as they are sent: in [0, 1], and rounded if the target takes 8 bit."""
        shape = self._original.shape
        if images.shape[1:] != shape:
            raise ValueError(f"the {self._settings.attack.name} attack asked about images of shape {images.shape}; expected (k, *{shape})")
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            excess = float(max(-images.min(), images.max() - 1))
            if not np.isfinite(excess):
                raise ValueError(f"the {self._settings.attack.name} attack asked about an image with NaN or infinite values")
            self._excess = max(self._excess, excess)
        encoded = encode(images, self._settings.input)
        bound = self._settings.attack.bound
        if self._settings.input == "8bit" and bound is not None:
            # Where rounding leaves the bound, round towards the original.
            for index in range(len(encoded)):
                if self._perturbation(encoded[index])[0] > bound:
                    levels = np.trunc((images[index].astype(np.float64) - self._original) * 255) + np.rint(self._original * 255.0)
                    encoded[index] = encode(levels / 255, "8bit")
        return encoded


def encode(images: NDArray[Any], input_type: InputType) -> Images:
    """Return images as they are sent: float32 in [0, 1], and rounded to k/255 if the target takes 8 bit.

    Args:
        images: Images.
        input_type: What the target takes.
    """
    encoded: Images = np.clip(images, 0, 1).astype(np.float32, copy=False)
    if input_type == "8bit":
        encoded = np.rint(encoded * np.float32(255)) / np.float32(255)
    return encoded


def perturbation_size(image: Images, original: Images, norm: str, input_type: InputType) -> tuple[float, float]:
    """Return the norm and the mean square of a perturbation.

    Args:
        image: The perturbed image, as `encode` returns it.
        original: The image without the perturbation, as `encode` returns it.
        norm: `l2` or `linf`.
        input_type: What the target takes. Differences of 8-bit images are exact multiples of 1/255.
    """
    delta = image.astype(np.float64).ravel() - original.ravel()
    if input_type == "8bit":
        delta = np.rint(delta * 255) / 255
    squares = float(delta @ delta)
    return squares**0.5 if norm == "l2" else float(np.abs(delta).max()), squares / delta.size


def answer_dtype(answer: Answer) -> type[np.int64 | np.float64]:
    """Return the dtype of the responses that an attack needs."""
    return np.int64 if answer == "class" else np.float64
