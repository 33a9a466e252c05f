"""Compare an exported graph with the network that it was exported from, within the `TOLERANCES` of its precision."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from defensemble_repository.averaging import softmax

from ..errors import VerificationError
from ..graphs.loading import cpu_session, translate_errors
from .compare import Comparison, same_classes
from .tolerances import TOLERANCES, Tolerance, checked_precision

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]
LogitsFunction = Callable[[Array], Array]
"""A function from images, float32 (N,C,H,W) in [0, 1], to logits, float32 (N,K)."""

_BATCH = 64
_NOT_USED = "the export is not used"
# Largest difference between outputs of one int8 graph at different batches, in units of max(1, largest |logit|): it sums the same integers
# in another order.
_BETWEEN_BATCHES = 1e-3


@dataclass(frozen=True)
class Verification:
    """The result of a comparison within `TOLERANCES`. The numbers are those of real images; an fp32 logit difference includes random ones.

    Args:
        precision: The precision of the graph.
        n: Number of different real images compared.
        batches: Batch sizes at which the graph was run.
        graph_optimisation: Graph optimisation of ONNX Runtime, "all" or "none".
        largest_logit_difference: In units of max(1, largest |logit|).
        largest_probability_difference: In [0, 1].
        agreement: Share of the images that get the same class.
        accuracy: Accuracy of the graph, if the classes of the images are known.
        reference_accuracy: Accuracy of the original network, likewise.
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
        """The goals of the precision that were missed, in words. They do not stop an export."""
        tolerance = TOLERANCES[self.precision]
        missed = []
        if tolerance.goal_agreement is not None and self.agreement < tolerance.goal_agreement:
            missed.append(
                f"{100 * self.agreement:.2f} % of {self.n} images get the same class; the goal is {100 * tolerance.goal_agreement:g} %"
            )
        points = tolerance.goal_accuracy_points
        if points is not None and self.accuracy is not None and self.reference_accuracy is not None:
            lost = 100 * (self.reference_accuracy - self.accuracy)
            if lost > points:
                missed.append(f"the accuracy drops by {lost:.2f} points on {self.n} images; the goal is at most {points:g}")
        return missed

    def to_values(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {**asdict(self), "batches": list(self.batches), "goals_missed": self.goals_missed}


def reference_from_module(module: torch.nn.Module) -> LogitsFunction:
    """Return a function that runs a torch module, which should be in eval mode."""
    import torch

    def run(images: Array) -> Array:
        with torch.inference_mode():
            logits: Array = module(torch.from_numpy(np.ascontiguousarray(images))).numpy()
        return logits

    return run


def verify_onnx(
    path: str | os.PathLike[str],
    reference: LogitsFunction,
    images: Array,
    *,
    max_batch_size: int,
    precision: str = "fp32",
    labels: Array | None = None,
    reference_name: str = "torch",
) -> Verification:
    """Compare an ONNX file in ONNX Runtime with a reference, on real and random images, at batch 1, 2 and `max_batch_size`.

    In fp32 every logit must agree within 1e-5 of max(1, largest |logit|), and the class must agree unless the two best logits are closer
    than that. Other precisions are compared on all `images`, within `TOLERANCES`. An int8 graph is compared without graph optimisation,
    because optimised kernels saturate on CPUs without VNNI; with optimisation it must only run.

    Args:
        path: The ONNX file.
        reference: Returns the expected logits, for example `reference_from_module(network)`.
        images: Real images, float32 (N,C,H,W) in [0, 1].
        max_batch_size: Largest batch to compare.
        precision: The precision of the graph, which selects the tolerance.
        labels: Classes of the images, int64 (N,), for the accuracies.
        reference_name: What errors call the reference.

    Raises:
        VerificationError: Names, types, shapes or values differ. The message contains the place and the difference.
        ExportError: The precision is unknown.

    Example:
        >>> verify_onnx("vgg19.onnx", reference_from_module(network), test_images, max_batch_size=16).largest_logit_difference
        3.1e-07
    """
    tolerance = TOLERANCES[checked_precision(precision)]
    graph = _Graph(path, precision)
    if precision == "int8":
        _Graph(path, "fp32")(images[:1])  # a server optimises the graph, and an optimised graph may fail to load
    graph.check_interface(images.shape[1:], reference(images[:1]).shape[1])
    overflow = " (the largest float16 is 65504: export it as fp32)" if precision == "fp16" else ""
    comparison = Comparison("the graph", reference_name, _NOT_USED, not_finite=overflow)
    measured = _Measured(comparison, tolerance)
    generator = np.random.default_rng(0)
    batches = tuple(sorted({1, 2, max_batch_size}))
    # Use every image once before any image twice.
    drawn = np.resize(generator.permutation(len(images)), sum(batches))
    chosen = np.split(drawn, np.cumsum(batches)[:-1])
    for batch, numbers in zip(batches, chosen, strict=True):
        for kind, sample in (("real", images[numbers]), ("random", generator.random(images[numbers].shape, np.float32))):
            measured.add(graph(sample), reference(sample), f"{batch} {kind} image{'s' if batch > 1 else ''}", real=kind == "real")
    if precision == "fp32":
        numbers = drawn[: len(images)]
    else:
        numbers = np.arange(len(images))
        logits = np.concatenate([graph(images[part]) for part in _parts(len(images))])
        expected = np.concatenate([reference(images[part]) for part in _parts(len(images))])
        _check_between_batches(graph, logits, images, chosen)
        measured = _Measured(comparison, tolerance)
        where = f"{len(images)} real images"
        measured.add(logits, expected, where, real=True)
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


def verification_session(path: str | os.PathLike[str], precision: str) -> onnxruntime.InferenceSession:
    """Load a graph into ONNX Runtime on the CPU; int8 without graph optimisation, because fused integer kernels saturate without VNNI."""
    return cpu_session(os.fspath(path), optimise=precision != "int8")


class _Graph:
    """An ONNX file in ONNX Runtime, loaded as its precision is verified."""

    def __init__(self, path: str | os.PathLike[str], precision: str) -> None:
        self.optimisation = "none" if precision == "int8" else "all"
        message = f"cannot be loaded by ONNX Runtime (graph optimisation {self.optimisation}) and is not used: choose another --precision"
        with translate_errors(message, file="the graph", error=VerificationError):
            self.session = verification_session(path, precision)

    def __call__(self, images: Array) -> Array:
        logits: Array
        with translate_errors(f"cannot be run on {len(images)} images; {_NOT_USED}", file="the graph", error=VerificationError):
            (logits,) = self.session.run(["logits"], {"images": np.ascontiguousarray(images)})
        return logits

    def check_interface(self, shape: tuple[int, ...], num_classes: int) -> None:
        for kind, tensors, name, dims in (
            ("input", self.session.get_inputs(), "images", list(shape)),
            ("output", self.session.get_outputs(), "logits", [num_classes]),
        ):
            got = [(tensor.name, tensor.type, tensor.shape[1:], isinstance(tensor.shape[0], str)) for tensor in tensors]
            expected = [(name, "tensor(float)", dims, True)]
            if got != expected:
                raise VerificationError(f"the graph's {kind}s (name, type, shape, free batch) are {got}, expected {expected}; {_NOT_USED}")


class _Measured:
    """The outputs of a graph and its reference, compared batch by batch: the largest differences, and the classes of all images."""

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
        """Return for each of the first `count` real images (None: all) whether it gets the same class."""
        same: Array = np.concatenate(self.classes)[:count] == np.concatenate(self.expected)[:count]
        return same

    def accuracies(self, labels: Array | None) -> tuple[float | None, float | None]:
        """Return the accuracies of the graph and of the reference on the first real images, one for each label."""
        if labels is None:
            return None, None
        got, expected = (np.concatenate(classes)[: len(labels)] for classes in (self.classes, self.expected))
        return float(np.mean(got == labels)), float(np.mean(expected == labels))


def _check_between_batches(graph: _Graph, logits: Array, images: Array, chosen: Sequence[Array]) -> None:
    """Check that the logits of an image do not depend on its batch. A wide tolerance hides that, so the graph is compared with itself."""
    comparison = Comparison("the graph in this batch", "the graph in other batches", _NOT_USED)
    for numbers in chosen:
        where = f"a batch of {len(numbers)}"
        comparison.check(comparison.difference(graph(images[numbers]), logits[numbers], where), _BETWEEN_BATCHES, "logits", where)


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + _BATCH) for start in range(0, count, _BATCH))
