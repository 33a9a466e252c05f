"""Compare a mask-aware graph with the plain graph that it contains: on its operator, and on its fallback without the operator's library."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime

from defensemble_ops import instruction_set, is_active, register

from ..errors import VerificationError
from ..graphs.loading import cpu_session, translate_errors
from .compare import Comparison, same_classes
from .tolerances import TOLERANCES

Array = np.ndarray[Any, Any]

# One batch of each class for which the operator has a form of its own (1, 2 to 4, 5 to 8, and 9 and more), and one that is computed in two
# parts: of 16 images, and of the rest. The largest batch of the export joins them.
BATCHES = (1, 2, 4, 8, 16, 19)
_RANDOM_BATCH = 5
_PLAIN, _OPERATOR, _FALLBACK = "the plain graph", "the mask-aware graph on its operator", "the mask-aware graph without its operator"
_NOT_USED = "the export is not used; leave the form out with --mask-aware off"
# Of these outputs the class is compared, too.
_CLASS_OUTPUTS = ("logits", "probabilities")


@dataclass(frozen=True)
class MaskAwareVerification:
    """The result of a comparison. Differences are the largest ones, in units of max(1, largest |value|) of an output in a batch.

    Attributes:
        batches: Batch sizes at which the graph was run.
        n: Number of different real images compared; 0 if there were only random ones.
        tolerance: The difference allowed.
        operator: The difference on the operator; None if the graph has none.
        fallback: The difference without the library of the operator.
        instruction_set: The instruction set that the operator used on this machine; None without operator.
    """

    batches: tuple[int, ...]
    n: int
    tolerance: float
    operator: float | None
    fallback: float
    instruction_set: str | None

    def to_values(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {**asdict(self), "batches": list(self.batches)}


def verify_mask_aware(
    content: bytes, plain: bytes, images: Array | None, *, max_batch_size: int, has_operator: bool = True
) -> MaskAwareVerification:
    """Compare every output of a mask-aware graph with those of its plain graph in ONNX Runtime, with and without the operator.

    Args:
        content: The bytes of the mask-aware file.
        plain: The bytes of the plain file.
        images: Real images, float32 (N,C,H,W) in [0, 1]. None: only random images are compared.
        max_batch_size: Largest batch to compare, in addition to `BATCHES`.
        has_operator: Whether the operator must run. A graph with masks of whole channels has smaller convolutions and no operator.

    Raises:
        VerificationError: An output differs by more than the tolerance of fp32, an image gets another class, or ONNX Runtime cannot run the
            graph or does not run the operator.
    """
    reference = _Graph(plain, _PLAIN)
    graphs = [_Graph(content, _FALLBACK), *([_Graph(content, _OPERATOR, use_operator=True)] if has_operator else [])]
    if has_operator and not graphs[-1].uses_operator():
        raise VerificationError(f"{_OPERATOR}: ONNX Runtime {onnxruntime.__version__} runs the fallback although the library is registered")
    batches = tuple(sorted({*BATCHES, max_batch_size}))
    generator = np.random.default_rng(0)
    shape = reference.session.get_inputs()[0].shape[1:]
    samples = [(f"{_RANDOM_BATCH} random images", generator.random((_RANDOM_BATCH, *shape), np.float32))]
    if images is None:
        samples += [(_where(batch, "random"), generator.random((batch, *shape), np.float32)) for batch in batches]
    else:
        # Use every image once before any image twice.
        chosen = np.split(np.resize(generator.permutation(len(images)), sum(batches)), np.cumsum(batches)[:-1])
        samples += [(_where(batch, "real"), images[numbers]) for batch, numbers in zip(batches, chosen, strict=True)]
    worst = {graph.name: 0.0 for graph in graphs}
    for where, sample in samples:
        expected = reference.run(sample, where)
        for graph in graphs:
            worst[graph.name] = max(worst[graph.name], _largest_difference(graph, sample, expected, where))
    return MaskAwareVerification(
        batches,
        0 if images is None else min(sum(batches), len(images)),
        _tolerance(),
        worst.get(_OPERATOR),
        worst[_FALLBACK],
        instruction_set() if has_operator else None,
    )


def inferences(max_batch_size: int) -> int:
    """Return the number of images that `verify_mask_aware` runs, in all graphs together."""
    return 3 * (sum({*BATCHES, max_batch_size}) + _RANDOM_BATCH) + 1


class _Graph:
    """A graph in ONNX Runtime."""

    def __init__(self, content: bytes, name: str, *, use_operator: bool = False) -> None:
        self.name = name
        with translate_errors(f"cannot be loaded by ONNX Runtime; {_NOT_USED}", file=name, error=VerificationError):
            self.session = cpu_session(content, register=register) if use_operator else cpu_session(content)
        self._outputs = [tensor.name for tensor in self.session.get_outputs()]

    def run(self, images: Array, where: str) -> dict[str, Array]:
        """Return every output, by name."""
        with translate_errors(f"cannot be run on {where}; {_NOT_USED}", file=self.name, error=VerificationError):
            values = self.session.run(None, {"images": np.ascontiguousarray(images)})
        return dict(zip(self._outputs, values, strict=True))

    def uses_operator(self) -> bool:
        """Run the graph on one image, and return whether the operator computed a part of it."""
        with translate_errors(f"cannot be run on one image; {_NOT_USED}", file=self.name, error=VerificationError):
            return is_active(self.session)


def _largest_difference(graph: _Graph, images: Array, expected: dict[str, Array], where: str) -> float:
    """Compare the outputs of a graph with the expected ones; return the largest difference."""
    comparison = Comparison(graph.name, _PLAIN, _NOT_USED)
    got, largest = graph.run(images, where), 0.0
    for output, values in expected.items():
        difference = comparison.difference(got[output], values, where)
        comparison.check(difference, _tolerance(), output, where)
        if output in _CLASS_OUTPUTS:
            comparison.check_classes(same_classes(got[output], values, _tolerance() * difference.scale), 1.0, where)
        largest = max(largest, difference.relative)
    return largest


def _tolerance() -> float:
    tolerance = TOLERANCES["fp32"].logits
    assert tolerance is not None
    return tolerance


def _where(batch: int, kind: str) -> str:
    return f"{batch} {kind} image{'s' if batch > 1 else ''}"
