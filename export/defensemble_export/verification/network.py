"""Does an exported graph compute what the network that it was made from does? As closely as its precision allows: ``TOLERANCES``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from ..errors import VerificationError
from .tolerances import TOLERANCES, Tolerance, checked_precision

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]
Answers = Callable[[Array], Array]
"""Images, float32 (N,C,H,W) in [0, 1], to logits, float32 (N,K)."""

_AT_ONCE = 64
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


def answers_from_module(module: torch.nn.Module) -> Answers:
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
    seed: int = 0,
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
    comparison = _Comparison(against, tolerance)
    generator = np.random.default_rng(seed)
    batches = tuple(sorted({1, 2, max_batch_size}))
    # No image twice before all were taken once.
    drawn = np.resize(generator.permutation(len(images)), sum(batches))
    chosen = np.split(drawn, np.cumsum(batches)[:-1])
    for batch, numbers in zip(batches, chosen, strict=True):
        for kind, sample in (("real", images[numbers]), ("random", generator.random(images[numbers].shape, np.float32))):
            comparison.add(graph(sample), answers(sample), f"{batch} {kind} image{'s' if batch > 1 else ''}", real=kind == "real")
    if precision == "fp32":
        numbers = drawn[: len(images)]
    else:
        numbers = np.arange(len(images))
        own = np.concatenate([graph(images[part]) for part in _parts(len(images))])
        expected = np.concatenate([answers(images[part]) for part in _parts(len(images))])
        _check_between_batches(graph, own, images, chosen)
        comparison = _Comparison(against, tolerance)
        comparison.add(own, expected, f"{len(images)} real images", real=True)
        comparison.check_agreement()
    right, rightly = comparison.right(None if labels is None else labels[numbers])
    return Verification(
        precision=precision,
        n=len(numbers),
        batches=batches,
        graph_optimisation=graph.optimisation,
        largest_logit_difference=comparison.logits,
        largest_probability_difference=comparison.probabilities,
        agreement=comparison.agreement(len(numbers)),
        accuracy=right,
        reference_accuracy=rightly,
    )


def session_as_verified(path: str | os.PathLike[str], precision: str) -> onnxruntime.InferenceSession:
    """A graph in ONNX Runtime on the CPU; int8 as it is written, without optimisation: fused integer kernels saturate without VNNI."""
    options = onnxruntime.SessionOptions()
    if precision == "int8":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


class _Graph:
    """An ONNX file in ONNX Runtime, as its precision wants to be verified."""

    def __init__(self, path: str | os.PathLike[str], precision: str) -> None:
        self.optimisation = "none" if precision == "int8" else "all"
        try:
            self.session = session_as_verified(path, precision)
        except Exception as error:  # as below
            reason = " ".join(str(error).split())[:400]
            raise VerificationError(
                f"the graph is not loaded by ONNX Runtime with graph optimisation {self.optimisation}: {reason}; the export is not used: "
                "choose another precision (--precision)"
            ) from error

    def __call__(self, images: Array) -> Array:
        logits: Array
        try:
            (logits,) = self.session.run(["logits"], {"images": np.ascontiguousarray(images)})
        except Exception as error:  # the classes of ONNX Runtime have no other common base
            reason = " ".join(str(error).split())[:400]
            raise VerificationError(f"the graph does not run on {len(images)} images: {reason}; the export is not used") from error
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


class _Comparison:
    """What a graph answers beside what it should: the largest differences, and on real images the classes."""

    def __init__(self, against: str, tolerance: Tolerance) -> None:
        self.against, self.tolerance = against, tolerance
        self.logits = self.probabilities = 0.0
        self.classes: list[Array] = []
        self.expected: list[Array] = []

    def add(self, got: Array, expected: Array, where: str, *, real: bool) -> None:
        if got.shape != expected.shape:
            raise VerificationError(f"{where}: the graph answers shape {got.shape}, {self.against} {expected.shape}")
        if not np.isfinite(expected).all():
            raise VerificationError(f"{where}: {self.against} answers values that are not finite; the export is not used")
        if not np.isfinite(got).all():
            hint = " (float16 ends at 65504: export it as fp32)" if self.tolerance is TOLERANCES["fp16"] else ""
            raise VerificationError(f"{where}: the graph answers values that are not finite{hint}; the export is not used")
        scale = max(1.0, float(np.abs(expected).max()))
        logits = float(np.abs(got - expected).max()) / scale
        probabilities = float(np.abs(softmax(got) - softmax(expected)).max())
        self._check_logits(got, expected, logits, scale, where)
        self._check_probabilities(probabilities, where)
        if real or self.tolerance.logits is not None:
            self.logits = max(self.logits, logits)
        if real:
            self.probabilities = max(self.probabilities, probabilities)
            self.classes.append(got.argmax(1))
            self.expected.append(expected.argmax(1))

    def agreement(self, count: int | None = None) -> float:
        """Share of the first ``count`` real images (None: all) that get the same class."""
        return float(np.mean(np.concatenate(self.classes)[:count] == np.concatenate(self.expected)[:count]))

    def right(self, labels: Array | None) -> tuple[float | None, float | None]:
        """Accuracy of the graph, and of what it is compared with, on as many of the first real images as there are labels."""
        if labels is None:
            return None, None
        got, expected = (np.concatenate(classes)[: len(labels)] for classes in (self.classes, self.expected))
        return float(np.mean(got == labels)), float(np.mean(expected == labels))

    def check_agreement(self) -> None:
        """One image may always get another class: a share of few images cannot be told."""
        count = sum(len(classes) for classes in self.classes)
        others = round(count * (1 - self.agreement()))
        if others > max(1, int(count * (1 - self.tolerance.agreement) + 1e-9)):
            raise VerificationError(
                f"{others} of {count} real images get another class than by {self.against}, at least "
                f"{100 * self.tolerance.agreement:g} % must keep theirs; the export is not used"
            )

    def _check_logits(self, got: Array, expected: Array, difference: float, scale: float, where: str) -> None:
        allowed = self.tolerance.logits
        if allowed is None:
            return
        if not difference <= allowed:  # also where it is NaN
            raise VerificationError(
                f"{where}: logits differ by {difference * scale:.3g}, allowed is {allowed * scale:.3g}; the export is not used"
            )
        best = np.sort(expected, axis=1)
        clear = best[:, -1] - best[:, -2] > allowed * scale
        if not np.array_equal(got.argmax(1)[clear], expected.argmax(1)[clear]):
            raise VerificationError(f"{where}: the graph and {self.against} choose different classes; the export is not used")

    def _check_probabilities(self, difference: float, where: str) -> None:
        allowed = self.tolerance.probabilities
        if allowed is not None and not difference <= allowed:
            raise VerificationError(f"{where}: probabilities differ by {difference:.3g}, allowed is {allowed:g}; the export is not used")


def _check_between_batches(graph: _Graph, own: Array, images: Array, chosen: Sequence[Array]) -> None:
    """The answer to an image must not depend on those beside it; where a tolerance is wide, only the graph's own answers can tell."""
    scale = max(1.0, float(np.abs(own).max()))
    for numbers in chosen:
        difference = float(np.abs(graph(images[numbers]) - own[numbers]).max()) / scale
        if not difference <= _BETWEEN_BATCHES:
            raise VerificationError(
                f"the graph answers otherwise in a batch of {len(numbers)} than in others: logits differ by {difference * scale:.3g}, "
                f"allowed is {_BETWEEN_BATCHES * scale:.3g}; the export is not used"
            )


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + _AT_ONCE) for start in range(0, count, _AT_ONCE))


def softmax(logits: Array) -> Array:
    """Over the classes of (N,K), in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: Array = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
