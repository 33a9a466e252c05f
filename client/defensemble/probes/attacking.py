"""Run a query attack on one target: its queries go through the ledger, and each example is sent once more before it counts."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._client.runtime import BlockingRuntime
from .._exceptions import InputError, ServiceError
from .attack_pool import AttackPool, Questions
from .attack_rates import AttackOutcome
from .base import ADVERSARIAL, CLEAN, Condition, QueryAttack, random_noise
from .lanes import AttackTask, Finished
from .outcome import Check
from .targets import Response

if TYPE_CHECKING:
    from .run import Run, TargetRun

_MOST_GAINED = 0.1  # by the second half of the queries: of the median distance, or of the success rate


def attack_target(run: Run, entry: TargetRun, attack: QueryAttack) -> None:
    """Attack all images that a target classifies correctly, except those whose result is recorded.

    Args:
        run: The run.
        entry: The target, which has responded to the clean images.
        attack: The attack.

    Raises:
        InputError: The attack needs probabilities, and the target returns classes.
        ServiceError: The target failed.
        WorkerEndedError: A worker process was killed.
        OSError: The ledger cannot be written.
    """
    if attack.answer == "margin" and CLEAN not in entry.measured["entropy"]:
        raise InputError(
            f"{attack.name} needs probabilities, but target {entry.target.name!r} returns classes: use boundary or hopskipjump"
        )
    positions = np.flatnonzero(entry.predicted[CLEAN] == run.data.labels)
    todo = [int(position) for position in positions if int(position) not in entry.attacked]
    if todo:
        _attack_images(run, entry, attack, todo)
    entry.attack = _outcome(entry, positions, len(run.data))
    _store_responses(entry, len(run.data))
    entry.checks += [*_checks(entry), *_noise_check(run, entry, attack), *_convergence(run, entry, attack)]


def image_seed(seed: int, row: int) -> int:
    """Return the seed of an image's attack, below 2**32. It depends on the probe's seed and the image's row only."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{row}".encode()).digest()[:4], "little")


def _attack_images(run: Run, entry: TargetRun, attack: QueryAttack, todo: list[int]) -> None:
    replay = run.ledger.answers(entry.number)
    examples = run.ledger.examples(entry.number, run.data.images.shape)
    workers = min(run.options.workers or len(os.sched_getaffinity(0)), len(todo))
    in_parallel = min(entry.target.in_parallel, 2)

    def tasks() -> Iterator[AttackTask]:
        for position in todo:
            image = run.image(position)
            yield AttackTask(position, image, image_seed(attack.seed, image.row), replay.get(position, np.empty(0)))

    slots, has_stopped = threading.Semaphore(in_parallel), threading.Event()

    def ask(questions: Questions) -> None:
        with slots:  # batches that are full come at any time
            if has_stopped.is_set():
                return
            try:
                response = entry.target.ask(questions.images)
                values = answers_from_response(attack, response, run.data.labels[questions.positions])
                run.ledger.append_answers(entry.number, questions.positions, values)
                questions.answer(values)
            except BaseException as error:
                has_stopped.set()
                questions.fail(error)

    async def ask_later(questions: Questions) -> None:
        ask(questions)

    runtime = BlockingRuntime()  # an interrupt does not wait for its threads
    with AttackPool(
        attack,
        budget=run.options.budget,
        input=run.options.input,
        workers=workers,
        lanes=max(1, run.options.lanes // workers),
        max_batch=run.batch_size(entry.target),
        in_flight=in_parallel,
    ) as pool:
        most = attack.most_queries(run.options.budget)
        done, total = sum(len(replay.get(position, ())) for position in todo), most * len(todo)
        try:
            for event in pool.run(tasks()):
                if isinstance(event, Questions):
                    done += len(event.positions)
                    if in_parallel == 1:
                        ask(event)  # in this thread, on which a function may depend
                    else:
                        runtime.start(ask_later(event))
                else:
                    _finish(run, entry, event, examples)
                    total -= most - event.counted
                run.progress.on_images(entry.target.name, done, max(done, total))
                run.note_identity_at_times(entry)
        except ServiceError:
            has_stopped.set()
            for _ in range(in_parallel):  # what is under way is counted
                slots.acquire()
            slots.release(in_parallel)
            raise
        finally:
            has_stopped.set()


def answers_from_response(attack: QueryAttack, response: Response, labels: NDArray[np.int64]) -> NDArray[Any]:
    """Return what an attack sees of a response, (k,): classes, or margins, from the probabilities.

    Args:
        attack: The attack.
        response: The response for k images.
        labels: Their true classes.
    """
    if attack.answer == "class" or response.probabilities is None:
        return response.classes
    probabilities, each = response.probabilities.astype(np.float64), np.arange(len(labels))
    true = probabilities[each, labels]
    probabilities[each, labels] = -np.inf
    margins: NDArray[np.float64] = true - probabilities.max(axis=1)
    return margins


def _finish(run: Run, entry: TargetRun, found: Finished, examples: NDArray[np.float32]) -> None:
    """Send the example once more, and record the result of an image."""
    record: dict[str, Any] = {
        "kind": "image",
        "target": entry.number,
        "position": found.position,
        "counted": found.counted,
        "is_spent": found.is_spent,
        "excess": found.excess,
        "trace": found.trace,
        "distance": None,
    }
    if found.example is not None:
        response = entry.target.ask(found.example[None], "verification")
        record["class"] = int(response.classes[0])
        record.update({name: values.item() for name, values in response.measured().items()})
        if record["class"] != run.data.labels[found.position]:
            record["distance"], record["mean_square"] = found.distance, found.mean_square
            examples[found.position] = found.example
    entry.attacked[found.position] = record
    run.ledger.append(record)


def _outcome(entry: TargetRun, positions: NDArray[np.intp], n: int) -> AttackOutcome:
    """Return the results as arrays for all n images."""
    is_attacked, is_spent = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    distance, mean_square = np.full(n, np.nan), np.full(n, np.nan)
    counted = np.zeros(n, np.int64)
    traces: list[list[tuple[int, float]]] = [[] for _ in range(n)]
    is_attacked[positions] = True
    for position, record in entry.attacked.items():
        counted[position], is_spent[position] = record["counted"], record["is_spent"]
        traces[position] = [(int(queries), float(size)) for queries, size in record["trace"]]
        if record["distance"] is not None:
            distance[position], mean_square[position] = record["distance"], record["mean_square"]
    return AttackOutcome(is_attacked, distance, mean_square, counted, is_spent, traces)


def _store_responses(entry: TargetRun, n: int) -> None:
    """Store the responses for the verified examples under the name `ADVERSARIAL`."""
    found = {position: record for position, record in entry.attacked.items() if record["distance"] is not None}
    entry.predicted[ADVERSARIAL] = np.full(n, -1, np.int64)
    for position, record in found.items():
        entry.predicted[ADVERSARIAL][position] = record["class"]
    for name, arrays in entry.measured.items():
        if CLEAN in arrays:  # also if nothing was found, so that a shard has the same arrays as the others
            arrays[ADVERSARIAL] = np.full(n, np.nan)
            for position, record in found.items():
                arrays[ADVERSARIAL][position] = record[name]


def _checks(entry: TargetRun) -> list[Check]:
    name, sent = entry.target.name, [record for record in entry.attacked.values() if "class" in record]
    confirmed = sum(record["distance"] is not None for record in sent)
    unchanged = sum(record["distance"] == 0 for record in sent)
    excess = max((record["excess"] for record in entry.attacked.values()), default=0.0)
    text = f"{name}: {confirmed} of {len(sent)} adversarial examples are misclassified when they are sent once more"
    return [
        Check("examples are sent once more", "PASS" if confirmed == len(sent) else "WARN", text),
        Check("epsilon 0", "FAIL" if unchanged else "PASS", f"{name}: {unchanged} adversarial examples are the clean image"),
        Check(
            "no query outside [0, 1]",
            "PASS" if excess < 1e-5 else "WARN",
            f"{name}: values were clipped before they were sent; they were out of the range by at most {excess:.2g}",
        ),
    ]


def _noise_check(run: Run, entry: TargetRun, attack: QueryAttack) -> list[Check]:
    """Return the check that the examples are more than noise: random noise of the norm of each fools fewer; none if nothing was found."""
    found = sorted((position, record["distance"]) for position, record in entry.attacked.items() if record["distance"] is not None)
    if not found:
        return []
    size, fooled = run.batch_size(entry.target), 0
    for at in range(0, len(found), size):
        noisy, labels = [], []
        for position, distance in found[at : at + size]:
            image = run.image(position)
            rng = attack.rng(Condition("noise of equal norm"), image.row)
            noisy.append(run.encoded(random_noise(image.pixels, attack.norm, distance, rng)))
            labels.append(image.label)
        fooled += int((entry.target.ask(np.stack(noisy), "sanity").classes != labels).sum())
    text = f"{entry.target.name}: random noise of the same {attack.norm} norm fools {fooled} of the {len(found)} images with an example"
    return [Check("more than noise of equal norm", "PASS" if 2 * fooled <= len(found) else "WARN", text)]


def _convergence(run: Run, entry: TargetRun, attack: QueryAttack) -> list[Check]:
    """Return the check that twice the queries change little, from the traces; none if nothing was found."""
    found = [record for record in entry.attacked.values() if record["distance"] is not None]
    if not found:
        return []
    name = "twice the queries change little"
    if attack.bound is not None:  # the attack ends at its first example
        most = attack.most_queries(run.options.budget)
        early = sum(2 * record["trace"][0][0] <= most for record in found)
        gained = (len(found) - early) / len(entry.attacked)
        counts = f"{early} of {len(entry.attacked)} images broken within {most // 2:,} queries, {len(found)} within {most:,}"
        text = f"{entry.target.name}: {counts}"
        return [Check(name, "PASS" if gained <= _MOST_GAINED else "WARN", text)]
    halves = [min((size for queries, size in record["trace"] if 2 * queries <= record["counted"]), default=np.inf) for record in found]
    half, final = float(np.median(halves)), float(np.median([record["distance"] for record in found]))
    text = f"{entry.target.name}: median distance {half:.4g} at half of the queries, {final:.4g} at the end"
    return [Check(name, "PASS" if half <= final * (1 + _MOST_GAINED) else "WARN", text)]
