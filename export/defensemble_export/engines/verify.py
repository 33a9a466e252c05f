"""Does a TensorRT plan answer as ONNX Runtime does on the graph that it was built from?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from defensemble_images import image_problem
from defensemble_repository.averaging import softmax
from defensemble_repository.plan_manifest import Profile

from ..errors import EngineError
from ..verification.compare import Comparison, same_classes
from ..verification.network import session_as_verified
from ..verification.tolerances import TOLERANCES
from .build_steps import INPUT

Array = np.ndarray[Any, Any]
Answers = Callable[[Array], dict[str, Array]]
_SEED = 0
_COMPARISON = Comparison("the plan", "its graph", "the plan is not kept", EngineError)


@dataclass(frozen=True)
class Agreement:
    """How far a plan and its graph agreed on so many images: the share of equal classes, the largest differences.

    ``logits`` is in units of max(1, largest |logit|), None where the graph gives probabilities.
    """

    images: int
    agreement: float
    probabilities: float
    logits: float | None

    def __str__(self) -> str:
        logits = "" if self.logits is None else f", logits within {self.logits:.2g}"
        return f"{self.agreement:.2%} of {self.images} images get the same class, probabilities within {self.probabilities:.2g}{logits}"


def verify_plan(plan: Path, graph: Path, images: Array, *, profile: Profile, precision: str) -> Agreement:
    """Compare a plan on this machine's GPU with ONNX Runtime on its processor, on real ``images`` (N,C,H,W), at the profile's batches.

    Raises:
        EngineError: they differ by more than ``TOLERANCES`` of the precision, or the plan cannot be run, or takes other images.
    """
    with plan_runner(plan) as answer:
        return compared(answer, onnx_runner(graph, precision), images, profile=profile, precision=precision)


def compared(answer: Answers, reference: Answers, images: Array, *, profile: Profile, precision: str) -> Agreement:
    """Compare two ways to compute a network, in batches of the profile's sizes; see ``verify_plan``."""
    check_images(images, profile)
    generator = np.random.default_rng(_SEED)
    pairs = []
    for batch in sorted({profile.min[0], profile.opt[0], profile.max[0]}):
        sample = np.ascontiguousarray(images[generator.integers(len(images), size=batch)])
        pairs.append(_pair(answer(sample), reference(sample), batch))
    # All images once, in batches of the best size, as far as they go; a rest is too few where the profile has a least batch above it.
    best = profile.opt[0]
    for start in range(0, len(images) - best + 1, best):
        sample = np.ascontiguousarray(images[start : start + best])
        pairs.append(_pair(answer(sample), reference(sample), best))
    got, expected = (np.concatenate(parts) for parts in zip(*((one, other) for one, other, _ in pairs), strict=True))
    return _agreement(got, expected, precision, pairs[0][2])


def check_images(images: Array, profile: Profile) -> None:
    """Whether plans of this profile can be compared on ``images``.

    Raises:
        EngineError: they are not float32 (N,C,H,W) of its size, or there are none.
    """
    fault = image_problem(images, "the images on which plans are compared", shape=profile.max[1:], consumer="the plans", in_range=False)
    if fault is not None:
        raise EngineError(f"{fault} (--images FILE.npy), or compare none (--no-compare)")


def _pair(got: dict[str, Array], expected: dict[str, Array], batch: int) -> tuple[Array, Array, str]:
    """What decides of both answers, and its name, once all of the plan's outputs are of the right shape and finite."""
    if set(got) != set(expected):
        raise EngineError(f"the plan gives {', '.join(sorted(got))}, its graph {', '.join(sorted(expected))}; the plan is not kept")
    for name, values in got.items():
        _COMPARISON.difference(values, expected[name], f"batch {batch}: '{name}'")
    name = "logits" if "logits" in got else "probabilities"
    if name not in got:
        raise EngineError(f"the plan gives {', '.join(sorted(got))}, expected logits or probabilities; compare it yourself (--no-compare)")
    return got[name], expected[name], name


def _agreement(got: Array, expected: Array, precision: str, output: str) -> Agreement:
    allowed, where = TOLERANCES[precision], f"{len(got)} images in {precision}"
    values = _COMPARISON.difference(got, expected, where)
    _COMPARISON.check(values, allowed.logits, output, where)
    probabilities = _COMPARISON.difference(softmax(got), softmax(expected), where) if output == "logits" else values
    _COMPARISON.check(probabilities, allowed.probabilities, "probabilities", where)
    same = same_classes(got, expected, -1.0 if allowed.logits is None else allowed.logits * values.scale)
    _COMPARISON.check_classes(same, allowed.agreement, where, least=0)
    return Agreement(len(got), float(same.mean()), probabilities.relative, values.relative if output == "logits" else None)


def onnx_runner(graph: Path, precision: str) -> Answers:
    """Ask a graph as its export was verified: ``session_as_verified``."""
    session = session_as_verified(graph, precision)
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {INPUT: images}), strict=True))


@contextmanager
def plan_runner(plan: Path) -> Iterator[Answers]:
    """Run a plan on this machine's GPU, through Polygraphy: it moves arrays to the device and back with the CUDA runtime alone."""
    try:
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise EngineError(
            f"a plan is compared with its graph through Polygraphy, which cannot be imported: {error}. Install it (pip install "
            "polygraphy), or leave the comparison out (--no-compare)"
        ) from error

    content = plan.read_bytes()
    # pybind11 answers a null pointer, such as that of a driver that does not work, with a TypeError.
    refusals = (PolygraphyException, TypeError, RuntimeError, OSError)

    def answer(images: Array) -> dict[str, Array]:
        try:
            given = runner.infer({INPUT: images})
        except refusals as error:
            raise EngineError(f"the plan cannot be run on this GPU: {error}; it is not kept") from error
        # Copies: the runner's own arrays are overwritten by the next call.
        return {name: np.array(values) for name, values in given.items()}

    with ExitStack() as stack:
        # Its logger prints, and below warnings it would do so between the lines of a progress bar.
        stack.enter_context(G_LOGGER.verbosity(G_LOGGER.WARNING))
        try:
            runner = stack.enter_context(TrtRunner(EngineFromBytes(content)))
        except refusals as error:
            raise EngineError(f"the plan cannot be loaded on this GPU: {error}; it is not kept") from error
        yield answer
