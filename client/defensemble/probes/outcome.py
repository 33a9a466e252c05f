"""The outcome of a probe: what was measured for each image, from which all rates are computed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError
from ..results.intervals import Rate, rate
from ..results.packed import pack
from .attack_rates import AttackOutcome as AttackOutcome, AttackRates, attack_rates
from .base import ADVERSARIAL, CLEAN, Condition, digest_of_all
from .rates import MAX_TARGETS_IN_PAIRS, ConditionRates, PairTest, condition_rates, pair_tests
from .uncertainty import MEASURES, Detector, detector

SCHEMA = "defensemble.probe/2"
MAX_NAME = 255
"""Most characters of a target's name: those of a model are names of folders."""
Status = Literal["PASS", "WARN", "FAIL"]
STATUSES: tuple[Status, ...] = get_args(Status)
"""From the best to the worst."""


@dataclass(frozen=True)
class Check:
    """A sanity check of a measurement.

    Example:
        >>> Check("clean accuracy", "PASS", "ensemble: 75.9 % of 1,000, chance is 10 %")
    """

    name: str
    status: Status
    text: str


@dataclass(frozen=True)
class QueryCounts:
    """Images that one target was asked about. `sent` is the sum of the others.

    Attributes:
        sent: All that were sent, retries and repeats included. The server's own statistics count the same.
        counted: Those that the probe needed: equal for an uninterrupted and a resumed run. Only these count towards the budget.
        verification: Adversarial examples that were sent once more before they count.
        sanity: Images of sanity checks.
        retried: Sent again by the client because a request failed.
        repeated: Sent again because the run was interrupted before the response was recorded. Of a target that failed, also the queries
            for the images whose attack it ended, until the run is resumed.

    Example:
        >>> outcome.targets[0].queries.counted
    """

    sent: int
    counted: int
    verification: int
    sanity: int
    retried: int
    repeated: int


@dataclass(frozen=True)
class TargetOutcome:
    """What was measured for one target, for n images in order.

    Attributes:
        name: Name of the target.
        role: `ensemble`, `member`, `other` or `function`.
        members: Names of the measured members, for an ensemble.
        identity: What identifies the model: versions and digests, as JSON.
        failure: Why the target failed; None if it did not. Conditions that were not completed are missing below.
        queries: The counted queries.
        predicted: int64 (n,) classes by the name of the condition. A query attack has `CLEAN`, and `ADVERSARIAL` with the classes of the
            verified adversarial examples, -1 where there is none.
        entropy: float64 (n,) in nats by the name of the condition, where the target reports probabilities; NaN where not measured.
        mutual_information: The same for the mutual information of an ensemble.
        attack: Of a query attack.
        details: More values of the probe, as JSON.

    Example:
        >>> outcome.targets[0].predicted["clean"]
    """

    name: str
    role: str
    members: tuple[str, ...]
    identity: Mapping[str, Any]
    failure: str | None
    queries: QueryCounts
    predicted: Mapping[str, NDArray[np.int64]]
    entropy: Mapping[str, NDArray[np.float64]]
    mutual_information: Mapping[str, NDArray[np.float64]]
    attack: AttackOutcome | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def measured(self, name: str) -> Mapping[str, NDArray[np.float64]]:
        """Return `entropy` or `mutual_information` by its name."""
        return self.entropy if name == "entropy" else self.mutual_information


@dataclass(frozen=True)
class ProbeOutcome:
    """The outcome of a probe on several targets.

    Attributes:
        probe: Name of the probe.
        title: Title for reports.
        threat_model: What the attacker knows and may do.
        paper: Source of the method.
        input: `float32` or `8bit`.
        answers: What the targets respond with: `probabilities`, `labels` or `top-1` (Triton's classification extension).
        norm: `l2`, `linf` or None.
        budget: Queries per image; None without a budget.
        seed: Seed of the probe.
        settings: All settings of the probe, as JSON.
        shard: (number from 1, count); None if all images were measured.
        data: The images' source and digest, as JSON.
        class_names: The classes.
        rows: int64 (n,): positions of the images in the dataset.
        labels: int64 (n,): their classes.
        image_digests: int64 (n,): a digest of each image with its label.
        conditions: The conditions, without the clean one. For a query attack, `value` is the largest norm that counts as an attack.
        is_source_fooled: bool (n,) by the name of the condition: whether the source of transferred examples misclassifies them; {} if
            there is no source.
        targets: The outcome of each target.
        checks: Sanity checks.
        gallery: Examples to show, as JSON: see `gallery_entry`.
        duration_s: Duration in seconds, without interruptions.
        provenance: Hardware, versions, server, commit and time, as JSON.
        details: More values of the probe, as JSON.

    Example:
        >>> outcome.rates(outcome.targets[0])[0].accuracy
    """

    probe: str
    title: str
    threat_model: str
    paper: str | None
    input: str
    answers: str
    norm: str | None
    budget: int | None
    seed: int
    settings: Mapping[str, Any]
    shard: tuple[int, int] | None
    data: Mapping[str, Any]
    class_names: tuple[str, ...]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    image_digests: NDArray[np.int64]
    conditions: tuple[Condition, ...]
    is_source_fooled: Mapping[str, NDArray[np.bool_]]
    targets: tuple[TargetOutcome, ...]
    checks: tuple[Check, ...]
    gallery: tuple[Mapping[str, Any], ...]
    duration_s: float
    provenance: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failures(self) -> dict[str, str]:
        """Why targets failed, by name; empty if none failed."""
        return {target.name: target.failure for target in self.targets if target.failure is not None}

    @property
    def name(self) -> str:
        """Name of the result: the probe, its setting `kind` if it has one, and the input type, which changes what an attack can do."""
        kind = self.settings.get("kind")
        return "-".join([self.probe, *([] if kind is None else [str(kind)]), self.input])

    @property
    def common(self) -> NDArray[np.bool_] | None:
        """Images that all targets classify correctly when clean, bool (n,); None if a target has no clean predictions."""
        clean = [self.correct(target, CLEAN) for target in self.targets]
        known = [correct for correct in clean if correct is not None]
        return np.logical_and.reduce(known) if known and len(known) == len(clean) else None

    @property
    def epsilon(self) -> float | None:
        """Largest norm that counts as a success of a query attack; None for any."""
        limits = [_norm(condition) for condition in self.conditions]
        return None if None in limits or not limits else max(limit for limit in limits if limit is not None)

    def correct(self, target: TargetOutcome, condition: str) -> NDArray[np.bool_] | None:
        """Return bool (n,): the images that a target classifies correctly; None if this was not measured.

        Under a query attack, these are the images that are correct when clean and have no verified adversarial example within the norm of
        the condition.

        Args:
            target: One of the targets.
            condition: Name of a condition, or `CLEAN`.
        """
        clean = None if CLEAN not in target.predicted else np.asarray(target.predicted[CLEAN] == self.labels)
        if condition == CLEAN or clean is None:
            return clean
        if target.attack is not None:
            return np.asarray(clean & ~target.attack.is_broken(_norm(self._condition(condition))))
        predicted = target.predicted.get(condition)
        return None if predicted is None else np.asarray(predicted == self.labels)

    def clean_rate(self, target: TargetOutcome) -> Rate | None:
        """Return the accuracy on clean images; None if it was not measured."""
        clean = self.correct(target, CLEAN)
        return None if clean is None else rate(clean)

    def rates(self, target: TargetOutcome) -> tuple[ConditionRates, ...]:
        """Return the rates of a target under each condition, in order."""
        clean, common = self.correct(target, CLEAN), self.common
        return tuple(
            condition_rates(condition.name, self.correct(target, condition.name), clean, self.is_source_fooled.get(condition.name), common)
            for condition in self.conditions
        )

    def attack_rates(self, target: TargetOutcome) -> AttackRates | None:
        """Return what a query attack achieved; None for other probes, and where it failed."""
        clean = self.correct(target, CLEAN)
        if target.attack is None or clean is None:
            return None
        # Square has a budget of its own, the setting `queries`, at which it ends by itself.
        budgets = [budget for budget in (self.budget, self.settings.get("queries")) if isinstance(budget, int)]
        return attack_rates(target.attack, clean, self.epsilon, self.seed, min(budgets, default=math.inf))

    def detectors(self, target: TargetOutcome) -> dict[str, dict[str, Detector]]:
        """Return, by condition and measure, how well uncertainty detects perturbed and misclassified images.

        A query attack has `CLEAN` and `ADVERSARIAL`: its AUROC compares all clean images with the adversarial examples, at any distance.
        """
        attack = target.attack
        conditions = [CLEAN, *([condition.name for condition in self.conditions] if attack is None else [ADVERSARIAL])]
        found: dict[str, dict[str, Detector]] = {}
        for name in conditions:
            for measure in MEASURES:
                measured = target.measured(measure)
                correct, seen = self.correct(target, name) if name != ADVERSARIAL else None, None
                if name == ADVERSARIAL and attack is not None and CLEAN in measured and CLEAN in target.predicted:
                    broken = attack.is_broken(None)
                    correct = (target.predicted[CLEAN] == self.labels) & ~broken
                    seen = np.where(broken, measured.get(ADVERSARIAL, np.nan), measured[CLEAN])
                if name in measured and correct is not None:
                    found.setdefault(name, {})[measure] = detector(measured, name, correct, seen)
        return found

    def pair_tests(self) -> list[PairTest]:
        """Return McNemar's tests of the pairs of targets, clean and under each condition."""
        conditions = [CLEAN, *(condition.name for condition in self.conditions)]
        correct: dict[str, dict[str, NDArray[np.bool_]]] = {}
        for target in self.targets:
            by_name = {name: self.correct(target, name) for name in conditions}
            correct[target.name] = {name: values for name, values in by_name.items() if values is not None}
        return pair_tests(correct, conditions)

    def json(self) -> dict[str, Any]:
        """Return everything as JSON, with a `schema` field: the arrays, and the rates that follow from them.

        Values that were not measured are None. `outcome_from_json` reads the result.

        Raises:
            InputError: A key of `provenance` has another meaning in the result.
            ValueError: A value of `settings`, `data`, `details` or another mapping is no JSON.
        """
        common = self.common
        pairs = "all pairs" if len(self.targets) <= MAX_TARGETS_IN_PAIRS else "pairs with the first target"
        values = {
            "schema": SCHEMA,
            "probe": self.probe,
            "title": self.title,
            "name": self.name,
            "threat_model": self.threat_model,
            "paper": self.paper,
            "input": self.input,
            "answers": self.answers,
            "norm": self.norm,
            "budget": self.budget,
            "seed": self.seed,
            "settings": dict(self.settings),
            "interval": "Wilson, 95 %",
            "shard": self.shard,
            "data": {
                **self.data,
                "n": len(self.labels),
                "n_common": None if common is None else int(common.sum()),
                "sha256": digest_of_all(self.image_digests),
            },
            "class_names": self.class_names,
            "images": {"row": pack(self.rows), "label": pack(self.labels), "digest": pack(self.image_digests)},
            "conditions": [asdict(condition) for condition in self.conditions],
            "targets": [self._target_json(target) for target in self.targets],
            "comparison": f"McNemar, exact, two-sided, not adjusted; {pairs}",
            "comparisons": [test.json() for test in self.pair_tests()],
            "checks": [asdict(check) for check in self.checks],
            "gallery": [dict(entry) for entry in self.gallery],
            "source": {"is_source_fooled": {name: pack(fooled) for name, fooled in self.is_source_fooled.items()}},
            "details": dict(self.details),
            "duration_s": round(self.duration_s, 3),
        }
        if overlap := sorted(set(values) & set(self.provenance)):
            raise InputError(f"provenance has the keys {', '.join(overlap)}, which have another meaning in a result: rename them")
        return plain_json({**values, **self.provenance})

    def _target_json(self, target: TargetOutcome) -> dict[str, Any]:
        clean, attack = self.clean_rate(target), self.attack_rates(target)
        return {
            "name": target.name,
            "role": target.role,
            "members": target.members,
            "identity": dict(target.identity),
            "failure": target.failure,
            "clean": None if clean is None else clean.json(),
            "skipped": None if clean is None else clean.n - clean.successes,
            "conditions": [rates.json() for rates in self.rates(target)],
            "attack": None if attack is None else attack.json(),
            "queries": asdict(target.queries),
            "uncertainty": {name: {key: one.json() for key, one in found.items()} for name, found in self.detectors(target).items()},
            "per_image": {
                **{
                    kind: {name: pack(values) for name, values in arrays.items()}
                    for kind, arrays in (("predicted", target.predicted), *((name, target.measured(name)) for name in MEASURES))
                },
                "attack": None if target.attack is None else target.attack.json(),
            },
            "details": dict(target.details),
        }

    def _condition(self, name: str) -> Condition:
        return next(condition for condition in self.conditions if condition.name == name)


def plain_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with lists for tuples, so that a result in memory equals the one that is read from its file.

    Numbers of numpy become those of Python. Bytes of file names that are not UTF-8, which JSON cannot hold, become U+FFFD.
    """
    text = json.dumps(values, allow_nan=False, ensure_ascii=False, default=_python_number)
    plain: dict[str, Any] = json.loads(text.encode(errors="surrogatepass").decode(errors="replace"))
    return plain


def _python_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r:.80} of type {type(value).__name__} has no form in JSON, which settings, source and provenance need")


def same_json(a: Any, b: Any) -> bool:
    """Return whether two values are the same as JSON: a tuple in memory equals the list that was read from a file."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def _norm(condition: Condition) -> float | None:
    """Return the largest norm that counts as an attack under a condition, for images in [0, 1]."""
    return condition.value / 255 if condition.value is not None and condition.unit == "1/255" else condition.value
