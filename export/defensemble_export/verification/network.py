"""Does an exported graph compute what the network that it was made from does? As closely as its precision allows: ``TOLERANCES``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from defensemble_repository.averaging import softmax

from ..errors import VerificationError
from ..graphs.loading import cpu_session, translated
from .compare import Comparison, same_classes
from .tolerances import TOLERANCES, Tolerance, checked_precision

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]
Answers = Callable[[Array], Array]
"""Images, float32 (N,C,H,W) in [0, 1], to logits, float32 (N,K)."""

_AT_ONCE = 64
_NOT_USED = "the export is not used"
# Between answers of one int8 graph at different batches, in units of max(1, largest |logit|): the same integers, summed in another order.
_BETWEEN_BATCHES = 1e-3


@dataclass(frozen=True)
class Verification:
    """What a comparison came to; ``TOLERANCES`` holds.

    ``n``: different real images compared. ``batches``: sizes at which the graph was run. ``graph_optimisation``: ONNX Runtime's, ``all`` or
    ``none``. ``largest_logit_difference``: in units of max(1, largest |logit|). ``agreement``: share of the real images that get the same
    class. ``accuracy``, ``reference_accuracy``: of the graph and of what it was made from, where the images' classes are known. All but
    ``largest_logit_difference`` of fp32, which random images count for too, are of real images.
    """

    precision: str
    n: int
    batches: tuple[int, ...]
    graph_optimisation: str
    largest_logit_difference: float
    largest_probability_difference: float
    agreement: float
    accuracy: float | None
    reference_accuracy: float | None

    @property
    def goals_missed(self) -> list[str]:
        """What this precision should reach and does not, in words; nothing that stops an export."""
        tolerance = TOLERANCES[self.precision]
        missed = []
        if tolerance.goal_agreement is not None and self.agreement < tolerance.goal_agreement:
            missed.append(
                f"{100 * self.agreement:.2f} % of {self.n} images keep their class, the goal is {100 * tolerance.goal_agreement:g} %"
            )
        points = tolerance.goal_accuracy_points
        if points is not None and self.accuracy is not None and self.reference_accuracy is not None:
            lost = 100 * (self.reference_accuracy - self.accuracy)
            if lost > points:
                missed.append(f"{lost:.2f} points of accuracy are lost on {self.n} images, the goal is at most {points:g}")
        return missed

    def to_values(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "batches": list(self.batches), "goals_missed": self.goals_missed}


def reference_from_module(module: torch.nn.Module) -> Answers:
    """What torch answers; the module is taken as it is, and should be in eval mode."""
    import torch

    def answers(images: Array) -> Array:
        with torch.inference_mode():
            logits: Array = module(torch.from_numpy(np.ascontiguousarray(images))).numpy()
        return logits

    return answers


def verify_onnx(
    path: str | os.PathLike[str],
    answers: Answers,
    images: Array,
    *,
    max_batch_size: int,
    precision: str = "fp32",
    labels: Array | None = None,
    against: str = "torch",
) -> Verification:
    """Compare ONNX Runtime with ``answers`` on real ``images`` (N,C,H,W) and on random ones, at batch 1, 2 and ``max_batch_size``.

    In fp32 every logit must be the same within 1e-5 of max(1, largest |logit|), and the class wherever the two best logits are further
    apart than that; other precisions are compared on all ``images`` and must keep what ``TOLERANCES`` says. An int8 graph is compared as it
    is written, with graph optimisation off: what optimisers make of it saturates on CPUs without VNNI; optimised, it must run. ``labels``
    int64 (N,) are the images' classes, for accuracies; ``against`` names in errors who answers.

    Raises:
        VerificationError: names, types, shapes or values differ; says where and by how much.
        ExportError: no such precision.
    """
    tolerance = TOLERANCES[checked_precision(precision)]
    graph = _Graph(path, precision)
    if precision == "int8":
        _Graph(path, "fp32")(images[:1])  # a server optimises it, and optimisers can end in a graph that is not loaded
    graph.check_interface(images.shape[1:], answers(images[:1]).shape[1])
    overflow = " (float16 ends at 65504: export it as fp32)" if precision == "fp16" else ""
    comparison = Comparison("the graph", against, _NOT_USED, not_finite=overflow)
    measured = _Measured(comparison, tolerance)
    generator = np.random.default_rng(0)
    batches = tuple(sorted({1, 2, max_batch_size}))
    # No image twice before all were taken once.
    drawn = np.resize(generator.permutation(len(images)), sum(batches))
    chosen = np.split(drawn, np.cumsum(batches)[:-1])
    for batch, numbers in zip(batches, chosen, strict=True):
        for kind, sample in (("real", images[numbers]), ("random", generator.random(images[numbers].shape, np.float32))):
            measured.add(graph(sample), answers(sample), f"{batch} {kind} image{'s' if batch > 1 else ''}", real=kind == "real")
    if precision == "fp32":
        numbers = drawn[: len(images)]
    else:
        numbers = np.arange(len(images))
        own = np.concatenate([graph(images[part]) for part in _parts(len(images))])
        expected = np.concatenate([answers(images[part]) for part in _parts(len(images))])
        _check_between_batches(graph, own, images, chosen)
        measured = _Measured(comparison, tolerance)
        where = f"{len(images)} real images"
        measured.add(own, expected, where, real=True)
        comparison.check_classes(measured.same(), tolerance.agreement, where)
    accuracy, reference_accuracy = measured.accuracies(None if labels is None else labels[numbers])
    return Verification(
        precision=precision,
        n=len(numbers),
        batches=batches,
        graph_optimisation=graph.optimisation,
        largest_logit_difference=measured.logits,
        largest_probability_difference=measured.probabilities,
        agreement=float(measured.same(len(numbers)).mean()),
        accuracy=accuracy,
        reference_accuracy=reference_accuracy,
    )


def session_as_verified(path: str | os.PathLike[str], precision: str) -> onnxruntime.InferenceSession:
    """A graph in ONNX Runtime on the CPU; int8 as it is written, without optimisation: fused integer kernels saturate without VNNI."""
    return cpu_session(os.fspath(path), optimise=precision != "int8")


class _Graph:
    """An ONNX file in ONNX Runtime, as its precision wants to be verified."""

    def __init__(self, path: str | os.PathLike[str], precision: str) -> None:
        self.optimisation = "none" if precision == "int8" else "all"
        message = f"is not loaded by ONNX Runtime with graph optimisation {self.optimisation}, and is not used: choose another --precision"
        with translated(message, file="the graph", error=VerificationError):
            self.session = session_as_verified(path, precision)

    def __call__(self, images: Array) -> Array:
        logits: Array
        with translated(f"does not run on {len(images)} images; {_NOT_USED}", file="the graph", error=VerificationError):
            (logits,) = self.session.run(["logits"], {"images": np.ascontiguousarray(images)})
        return logits

    def check_interface(self, shape: tuple[int, ...], num_classes: int) -> None:
        for what, tensors, name, dims in (
            ("input", self.session.get_inputs(), "images", list(shape)),
            ("output", self.session.get_outputs(), "logits", [num_classes]),
        ):
            got = [(tensor.name, tensor.type, tensor.shape[1:], isinstance(tensor.shape[0], str)) for tensor in tensors]
            expected = [(name, "tensor(float)", dims, True)]
            if got != expected:
                raise VerificationError(f"the graph's {what}s (name, type, shape, free batch) are {got}, expected {expected}")


class _Measured:
    """What a graph and its network answer: compared batch by batch, and the largest differences and the classes of all of them."""

    def __init__(self, comparison: Comparison, tolerance: Tolerance) -> None:
        self.comparison, self.tolerance = comparison, tolerance
        self.logits = self.probabilities = 0.0
        self.classes: list[Array] = []
        self.expected: list[Array] = []

    def add(self, got: Array, expected: Array, where: str, *, real: bool) -> None:
        logits = self.comparison.difference(got, expected, where)
        probabilities = self.comparison.difference(softmax(got), softmax(expected), where)
        self.comparison.check(logits, self.tolerance.logits, "logits", where)
        if self.tolerance.logits is not None:
            self.comparison.check_classes(same_classes(got, expected, self.tolerance.logits * logits.scale), 1.0, where)
        self.comparison.check(probabilities, self.tolerance.probabilities, "probabilities", where)
        if real or self.tolerance.logits is not None:
            self.logits = max(self.logits, logits.relative)
        if real:
            self.probabilities = max(self.probabilities, probabilities.relative)
            self.classes.append(got.argmax(1))
            self.expected.append(expected.argmax(1))

    def same(self, count: int | None = None) -> Array:
        """Whether each of the first `count` real images (None: all) gets the same class."""
        same: Array = np.concatenate(self.classes)[:count] == np.concatenate(self.expected)[:count]
        return same

    def accuracies(self, labels: Array | None) -> tuple[float | None, float | None]:
        """Accuracy of the graph, and of what it is compared with, on as many of the first real images as there are labels."""
        if labels is None:
            return None, None
        got, expected = (np.concatenate(classes)[: len(labels)] for classes in (self.classes, self.expected))
        return float(np.mean(got == labels)), float(np.mean(expected == labels))


def _check_between_batches(graph: _Graph, own: Array, images: Array, chosen: Sequence[Array]) -> None:
    """The answer to an image must not depend on those beside it; where a tolerance is wide, only the graph's own answers can tell."""
    comparison = Comparison("the graph in this batch", "the graph in others", _NOT_USED)
    for numbers in chosen:
        where = f"a batch of {len(numbers)}"
        comparison.check(comparison.difference(graph(images[numbers]), own[numbers], where), _BETWEEN_BATCHES, "logits", where)


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + _AT_ONCE) for start in range(0, count, _AT_ONCE))
