"""Compare a TensorRT plan with its graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from defensemble_images import image_problem
from defensemble_repository.averaging import softmax
from defensemble_repository.plan_manifest import OptimizationProfile

from ..errors import EngineError
from ..verification.compare import Comparison, same_classes
from ..verification.network import verification_session
from ..verification.tolerances import TOLERANCES
from .build_steps import INPUT

Array = np.ndarray[Any, Any]
OutputsFunction = Callable[[Array], dict[str, Array]]
_SEED = 0
_COMPARISON = Comparison("the plan", "its graph", "the plan is not kept", EngineError)


@dataclass(frozen=True)
class Agreement:
    """How closely a plan and its graph agree.

    Args:
        images: Number of images compared.
        agreement: Share of the images that get the same class.
        probabilities: Largest difference of a probability.
        logits: Largest difference of a logit, in units of max(1, largest |logit|). None: the graph returns probabilities.
    """

    images: int
    agreement: float
    probabilities: float
    logits: float | None

    def __str__(self) -> str:
        logits = "" if self.logits is None else f", logits within {self.logits:.2g}"
        return f"{self.agreement:.2%} of {self.images} images get the same class, probabilities within {self.probabilities:.2g}{logits}"


def verify_plan(plan: Path, graph: Path, images: Array, *, profile: OptimizationProfile, precision: str) -> Agreement:
    """Compare a plan on this machine's GPU with its graph in ONNX Runtime on the CPU, at the batches of the profile.

    Args:
        plan: The TensorRT plan.
        graph: The ONNX file that it was built from.
        images: Real images, float32 (N,C,H,W).
        profile: The shapes of the plan.
        precision: The precision of the graph, which selects the `TOLERANCES`.

    Raises:
        EngineError: The outputs differ by more than the tolerance, the plan cannot be run, or the images do not fit.
    """
    with plan_runner(plan) as run:
        return compare_outputs(run, onnx_runner(graph, precision), images, profile=profile, precision=precision)


def compare_outputs(
    run: OutputsFunction, reference: OutputsFunction, images: Array, *, profile: OptimizationProfile, precision: str
) -> Agreement:
    """Compare a function with a reference, in batches of the profile's sizes; see `verify_plan`."""
    check_images(images, profile)
    generator = np.random.default_rng(_SEED)
    pairs = []
    for batch in sorted({profile.min[0], profile.opt[0], profile.max[0]}):
        sample = np.ascontiguousarray(images[generator.integers(len(images), size=batch)])
        pairs.append(_compare_batch(run(sample), reference(sample), batch))
    # Every image once, in batches of the best size. The remainder is left out: the profile's smallest batch may be larger.
    best = profile.opt[0]
    for start in range(0, len(images) - best + 1, best):
        sample = np.ascontiguousarray(images[start : start + best])
        pairs.append(_compare_batch(run(sample), reference(sample), best))
    got, expected = (np.concatenate(parts) for parts in zip(*((values, others) for values, others, _ in pairs), strict=True))
    return _agreement(got, expected, precision, pairs[0][2])


def check_images(images: Array, profile: OptimizationProfile) -> None:
    """Check that plans of a profile can be compared on `images`.

    Raises:
        EngineError: The images are not float32 (N,C,H,W) of the profile's size, or there are none.
    """
    problem = image_problem(images, "the images on which plans are compared", shape=profile.max[1:], consumer="the plans", in_range=False)
    if problem is not None:
        raise EngineError(f"{problem} (--images FILE.npy), or skip the comparison (--no-compare)")


def _compare_batch(got: dict[str, Array], expected: dict[str, Array], batch: int) -> tuple[Array, Array, str]:
    """Check that all outputs have the right shape and are finite; return the logits or probabilities of both, and their name."""
    if set(got) != set(expected):
        raise EngineError(
            f"the plan returns {', '.join(sorted(got))}, but its graph returns {', '.join(sorted(expected))}; the plan is not kept"
        )
    for name, values in got.items():
        _COMPARISON.difference(values, expected[name], f"batch {batch}: '{name}'")
    name = "logits" if "logits" in got else "probabilities"
    if name not in got:
        raise EngineError(
            f"the plan returns {', '.join(sorted(got))}, expected logits or probabilities; skip the comparison (--no-compare)"
        )
    return got[name], expected[name], name


def _agreement(got: Array, expected: Array, precision: str, output: str) -> Agreement:
    allowed, where = TOLERANCES[precision], f"{len(got)} images in {precision}"
    values = _COMPARISON.difference(got, expected, where)
    _COMPARISON.check(values, allowed.logits, output, where)
    probabilities = _COMPARISON.difference(softmax(got), softmax(expected), where) if output == "logits" else values
    _COMPARISON.check(probabilities, allowed.probabilities, "probabilities", where)
    same = same_classes(got, expected, -1.0 if allowed.logits is None else allowed.logits * values.scale)
    _COMPARISON.check_classes(same, allowed.agreement, where, min_allowed=0)
    return Agreement(len(got), float(same.mean()), probabilities.relative, values.relative if output == "logits" else None)


def onnx_runner(graph: Path, precision: str) -> OutputsFunction:
    """Return a function that runs a graph as its export was verified (see `verification_session`)."""
    session = verification_session(graph, precision)
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {INPUT: images}), strict=True))


@contextmanager
def plan_runner(plan: Path) -> Iterator[OutputsFunction]:
    """Load a plan on this machine's GPU and yield a function that runs it.

    Polygraphy runs it: it copies arrays to the device and back with only the CUDA runtime.
    """
    try:
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise EngineError(
            f"Polygraphy, which runs the plan for the comparison, cannot be imported: {error}. Install it (pip install polygraphy), or "
            "skip the comparison (--no-compare)"
        ) from error

    content = plan.read_bytes()
    # pybind11 turns a null pointer, such as that of a broken driver, into a TypeError.
    known_errors = (PolygraphyException, TypeError, RuntimeError, OSError)

    def run(images: Array) -> dict[str, Array]:
        try:
            outputs = runner.infer({INPUT: images})
        except known_errors as error:
            raise EngineError(f"the plan cannot be run on this GPU: {error}; it is not kept") from error
        # Copy: the next call overwrites the runner's arrays.
        return {name: np.array(values) for name, values in outputs.items()}

    with ExitStack() as stack:
        # Polygraphy's logger prints; messages below warnings would break up a progress bar.
        stack.enter_context(G_LOGGER.verbosity(G_LOGGER.WARNING))
        try:
            runner = stack.enter_context(TrtRunner(EngineFromBytes(content)))
        except known_errors as error:
            raise EngineError(f"the plan cannot be loaded on this GPU: {error}; it is not kept") from error
        yield run
