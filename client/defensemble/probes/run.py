"""One run of a probe: ask the targets, keep the ledger, and build the outcome."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._client.runtime import BlockingRuntime
from .._coroutines import run_blocking
from .._exceptions import InputError, ServiceError
from . import sanity
from .base import ADVERSARIAL, CLEAN, NOISE, Condition, LabelledImages, PerturbationProbe, Probe, ProbeImage, QueryAttack
from .counting import SentCounts
from .gallery import GALLERY_CHANNELS, PER_TARGET, gallery_entry
from .lanes import encode
from .ledger import Ledger
from .options import Preview, Progress, RunOptions
from .outcome import AttackOutcome, Check, ProbeOutcome, QueryCounts, TargetOutcome
from .targets import AnswerType, Response, Target
from .uncertainty import MEASURES

_IDENTITY_S = 5.0  # how often a target is asked whether it was edited
_CLEAN = Condition(CLEAN)


@dataclass
class TargetRun:
    """What is known of one target during a run. It becomes a `TargetOutcome`."""

    number: int
    target: Target
    predicted: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    measured: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=lambda: {name: {} for name in MEASURES})
    identities: list[dict[str, Any]] = field(default_factory=list)
    attacked: dict[int, dict[str, Any]] = field(default_factory=dict)
    attack: AttackOutcome | None = None
    failure: str | None = None
    checks: list[Check] = field(default_factory=list)

    @property
    def answers(self) -> AnswerType:
        """What the target responds with. A function may return classes only, which is known when it has responded."""
        returns_classes = CLEAN in self.predicted and CLEAN not in self.measured["entropy"]
        return "labels" if returns_classes and self.target.answers == "probabilities" else self.target.answers

    def store(self, condition: str, positions: NDArray[np.intp], response: Response, n: int) -> None:
        """Store the response for images.

        Args:
            condition: Name of the condition.
            positions: (k,) positions of the images.
            response: The response.
            n: Number of images of the probe.
        """
        self.restore(condition, {"positions": positions, "classes": response.classes, **response.measured()}, n)

    def restore(self, condition: str, record: Mapping[str, Any], n: int) -> None:
        """Store what a record of the ledger has."""
        positions = np.asarray(record["positions"])
        self.predicted.setdefault(condition, np.full(n, -1, np.int64))[positions] = record["classes"]
        for name, arrays in self.measured.items():
            if name in record:
                arrays.setdefault(condition, np.full(n, np.nan))[positions] = record[name]

    def record(self, condition: str, positions: NDArray[np.intp]) -> dict[str, Any]:
        """Return the record of the ledger for images whose response was stored."""
        record = {"kind": "responses", "target": self.number, "condition": condition, "positions": positions.tolist()}
        record["classes"] = self.predicted[condition][positions].tolist()
        for name, arrays in self.measured.items():
            if condition in arrays:
                record[name] = arrays[condition][positions].tolist()
        return record

    def missing(self, condition: str, n: int) -> NDArray[np.intp]:
        """Return the positions of the images without a response."""
        return np.flatnonzero(self.predicted[condition] < 0) if condition in self.predicted else np.arange(n)


class Run:
    """One run of a probe, by this process.

    Args:
        probe: The probe.
        data: The images.
        rows: Their positions in the dataset.
        options: How to run it.
        ledger: The ledger.
        progress: Called while it runs.
        runs: The targets.
    """

    def __init__(
        self,
        probe: Probe,
        data: LabelledImages,
        rows: NDArray[np.int64],
        options: RunOptions,
        ledger: Ledger,
        progress: Progress,
        runs: list[TargetRun],
    ) -> None:
        self.probe, self.data, self.rows, self.options = probe, data, rows, options
        self.ledger, self.progress, self.runs = ledger, progress, runs
        self._identity_noted = time.monotonic()
        self.conditions: tuple[Condition, ...] = (_CLEAN,)
        if isinstance(probe, PerturbationProbe):
            self._perturb = probe.prepare(data, rows, progress.on_step)
            self.conditions = (_CLEAN, *probe.conditions())
        elif isinstance(probe, QueryAttack):
            self._perturb = probe.perturb
        for record in ledger.records:
            if record["kind"] == "responses":
                runs[record["target"]].restore(record["condition"], record, len(data))
            elif record["kind"] == "image":
                runs[record["target"]].attacked[record["position"]] = record
            elif record["kind"] == "identity":
                runs[record["target"]].identities.append(record["identity"])
        for entry in runs:
            ledger.move_counts(entry.number, entry.target.counts)

    def work(self) -> None:
        """Ask all targets."""
        speeds = {}
        for entry in self.runs:
            with failures_of(entry):
                images = self._perturbed(_CLEAN, np.arange(min(self.batch_size(entry.target), len(self.data))))
                speeds[entry.target.name] = sanity.check_determinism(entry, images)
                self._note_identity(entry)  # after the first response, whose version is a part of it
                entry.checks += self.probe.target_checks(entry.target, entry.identities[-1])
        self.progress.on_preview(self._preview(speeds))
        for entry in self.runs:
            if entry.failure is None:
                with failures_of(entry):
                    self._ask(entry)
                    self._check_extreme(entry)
                    if isinstance(self.probe, QueryAttack):
                        from .attacking import attack_target

                        attack_target(self, entry, self.probe)
            if entry.identities:  # it responded
                with failures_of(entry):
                    self._note_identity(entry)

    def encoded(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return images as the targets receive them."""
        return encode(images, self.options.input)

    def image(self, position: int) -> ProbeImage:
        """Return one image."""
        return ProbeImage(self.data.images[position], int(self.data.labels[position]), int(self.rows[position]))

    def batch_size(self, target: Target) -> int:
        """Return the most images of one request to a target."""
        return min(target.max_batch, self.options.batch_size or target.max_batch)

    def _preview(self, speeds: dict[str, float]) -> Preview:
        queries, is_attack = {}, isinstance(self.probe, QueryAttack)
        for entry in self.runs:
            if entry.failure is None:
                queries[entry.target.name] = sum(len(entry.missing(condition.name, len(self.data))) for condition in self.conditions)
                if isinstance(self.probe, QueryAttack):
                    left = len(self.data) - len(entry.attacked)
                    queries[entry.target.name] += left * self.probe.most_queries(self.options.budget)
        return Preview(queries, speeds, is_attack)

    def _ask(self, entry: TargetRun) -> None:
        """Ask a target about all images under all conditions, except those whose responses are recorded."""
        size, n = self.batch_size(entry.target), len(self.data)
        todo = [(condition, entry.missing(condition.name, n)) for condition in self.conditions]
        total = n * len(self.conditions)
        done = total - sum(len(positions) for _, positions in todo)

        async def ask(condition: Condition, positions: NDArray[np.intp]) -> Response:
            return entry.target.ask(self._perturbed(condition, positions))

        self.progress.on_images(entry.target.name, done, total)
        batches = ((condition, positions[at : at + size]) for condition, positions in todo for at in range(0, len(positions), size))
        for (condition, positions), response in _in_order(ask, batches, entry.target.in_parallel):
            entry.store(condition.name, positions, response, n)
            self.ledger.append(entry.record(condition.name, positions))
            done += len(positions)
            self.progress.on_images(entry.target.name, done, total)
            self.note_identity_at_times(entry)

    def _perturbed(self, condition: Condition, positions: NDArray[np.intp]) -> NDArray[np.float32]:
        if condition is _CLEAN:
            return self.encoded(self.data.images[positions])
        images = np.empty((len(positions), *self.data.images.shape[1:]), np.float32)
        for index, position in enumerate(positions.tolist()):
            image = self.image(position)
            perturbed = self._perturb(image, condition, self.probe.rng(condition, image.row))
            if perturbed.shape != image.pixels.shape:
                raise InputError(f"{self.probe.name} made an image of shape {perturbed.shape}; expected {image.pixels.shape}")
            images[index] = perturbed
        if not (images.min() >= 0 and images.max() <= 1):
            raise InputError(f"{self.probe.name} made values from {images.min():g} to {images.max():g}; expected [0, 1]")
        return self.encoded(images)

    def _check_extreme(self, entry: TargetRun) -> None:
        condition = self.probe.extreme()
        if condition is not None:
            positions = np.arange(len(self.data))[: self.batch_size(entry.target)]
            response = entry.target.ask(self._perturbed(condition, positions), "sanity")
            entry.checks.append(sanity.extreme_check(entry, condition, response.classes == self.data.labels[positions]))

    def note_identity_at_times(self, entry: TargetRun) -> None:
        """Look every few seconds whether the target was edited."""
        if time.monotonic() - self._identity_noted > _IDENTITY_S:
            self._note_identity(entry)

    def _note_identity(self, entry: TargetRun) -> None:
        """Record what identifies the target now, if that has changed."""
        self._identity_noted = time.monotonic()
        identity = entry.target.identity()
        if not entry.identities or entry.identities[-1] != identity:
            entry.identities.append(identity)
            self.ledger.append({"kind": "identity", "target": entry.number, "identity": identity})

    def outcome(self, class_names: tuple[str, ...], source: dict[str, Any], provenance: dict[str, Any]) -> ProbeOutcome:
        """Return the outcome of the run.

        Args:
            class_names: Names of the classes.
            source: Where the images are from.
            provenance: Hardware, versions and server.
        """
        probe, options = self.probe, self.options
        outcomes = tuple(self._target_outcome(entry, source) for entry in self.runs)
        answers = sorted({entry.answers for entry in self.runs})
        conditions = tuple(probe.conditions())
        checks = (*sanity.checks_of(self.runs, self.data.labels, len(class_names) or None), *probe.checks())
        return ProbeOutcome(
            probe=probe.name,
            title=probe.title,
            threat_model=probe.threat_model,
            paper=probe.paper,
            input=options.input,
            answers=", ".join(answers),
            norm=probe.norm if isinstance(probe, QueryAttack) else None,
            budget=options.budget,
            seed=probe.seed,
            settings=probe.settings(),
            shard=options.shard,
            data=source,
            class_names=class_names,
            rows=self.rows,
            labels=self.data.labels.astype(np.int64),
            image_digests=self.data.digests,
            conditions=conditions,
            is_source_fooled=probe.is_source_fooled(self.rows, options.input) if isinstance(probe, PerturbationProbe) else {},
            targets=tuple(replace(target, details=probe.conclude(target.details, checks)) for target in outcomes),
            checks=checks,
            gallery=tuple(shown for entry in self.runs for shown in self._gallery(entry)),
            duration_s=round(self.ledger.duration_s, 3),
            provenance=provenance,
        )

    def _gallery(self, entry: TargetRun) -> list[dict[str, Any]]:
        """Return the first images that are correct when clean, and misclassified under a condition, with their perturbed versions."""
        if CLEAN not in entry.predicted or self.data.images.shape[1] not in GALLERY_CHANNELS:
            return []
        shown: list[dict[str, Any]] = []
        clean = entry.predicted[CLEAN]
        perturbed = [condition.name for condition in self.conditions[1:] if condition.group != NOISE]
        names = perturbed if entry.attack is None else [ADVERSARIAL]
        for position in np.flatnonzero(clean == self.data.labels).tolist():
            for name in names:
                other = int(entry.predicted[name][position]) if name in entry.predicted else -1
                if other in (-1, self.data.labels[position]):
                    continue
                if len(shown) == PER_TARGET:
                    return shown
                shown.append(self._gallery_entry(entry, position, name))
        return shown

    def _gallery_entry(self, entry: TargetRun, position: int, name: str) -> dict[str, Any]:
        if name == ADVERSARIAL:
            perturbed = self.ledger.examples(entry.number, self.data.images.shape)[position]
        else:
            condition = next(condition for condition in self.conditions if condition.name == name)
            perturbed = self._perturbed(condition, np.array([position]))[0]
        measured = entry.measured["entropy"]
        entropies = [measured[key][position].item() if key in measured else None for key in (CLEAN, name)]
        return gallery_entry(
            self.encoded(self.data.images[position]),
            perturbed,
            target=entry.target.name,
            row=int(self.rows[position]),
            condition=name,
            label=int(self.data.labels[position]),
            clean_class=int(entry.predicted[CLEAN][position]),
            adversarial_class=int(entry.predicted[name][position]),
            distance=None if entry.attack is None else float(entry.attack.distance[position]),
            entropy_clean=entropies[0],
            entropy_adversarial=entropies[1],
        )

    def _target_outcome(self, entry: TargetRun, source: dict[str, Any]) -> TargetOutcome:
        complete = {name: classes for name, classes in entry.predicted.items() if (classes >= 0).all() or name == ADVERSARIAL}
        counted = sum(int((classes >= 0).sum()) for name, classes in entry.predicted.items() if name != ADVERSARIAL)
        counted += sum(record["counted"] for record in entry.attacked.values())
        return TargetOutcome(
            name=entry.target.name,
            role=entry.target.role,
            members=entry.target.members,
            identity=entry.identities[-1] if entry.identities else {},
            failure=entry.failure,
            queries=query_counts(entry.target.counts, counted),
            predicted=complete,
            **{key: {name: values for name, values in arrays.items() if name in complete} for key, arrays in entry.measured.items()},
            attack=entry.attack,
            details=self.probe.summary(source, self.rows, self.data.labels, complete),
        )


def query_counts(counts: SentCounts, counted: int) -> QueryCounts:
    """Return the books of a target.

    Args:
        counts: What was sent.
        counted: The images that the probe needed.
    """
    sent, asked, checked, verification = (int(value) for value in counts.values)
    return QueryCounts(sent, counted, verification, checked, sent - asked, asked - counted - checked - verification)


@contextmanager
def failures_of(entry: TargetRun) -> Iterator[None]:
    """Turn the failure of a server into the failure of a target."""
    try:
        yield
    except ServiceError as error:
        entry.failure = entry.failure or f"{type(error).__name__}: {error}"


_Batch = tuple[Condition, NDArray[np.intp]]


def _in_order(
    ask: Callable[[Condition, NDArray[np.intp]], Coroutine[Any, Any, Response]], batches: Iterator[_Batch], in_parallel: int
) -> Iterator[tuple[_Batch, Response]]:
    """Ask about batches, several at the same time, and yield them with their responses in order.

    After a `ServiceError`, the requests that are under way are finished, and their responses are yielded before it is raised. Nothing waits
    for them after another error or an interrupt: their threads are daemons.
    """
    if in_parallel == 1:  # in this thread, on which a function may depend
        for batch in batches:
            yield batch, run_blocking(ask(*batch))
        return
    runtime = BlockingRuntime()
    failure: ServiceError | None = None
    pending: deque[tuple[_Batch, Future[Response]]] = deque()
    while failure is None or pending:
        while failure is None and len(pending) < in_parallel and (following := next(batches, None)) is not None:
            pending.append((following, runtime.start(ask(*following))))
        if not pending:
            return
        batch, future = pending.popleft()
        try:
            response = future.result()
        except ServiceError as error:
            failure = failure or error
        else:
            yield batch, response
    raise failure
