"""Compare a fused graph with the ensemble of its members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

from defensemble_repository.averaging import ROUNDED_TOLERANCE
from defensemble_repository.configs import OUTPUTS
from defensemble_repository.ensemble import Ensemble

from ..errors import ExportError, VerificationError
from ..graphs.averaging import average_onnx
from ..graphs.fusion import FUSING_ALTERNATIVE
from ..graphs.loading import cpu_session, translate_errors
from ..graphs.precision import computes_in_float16
from ..graphs.stored import model_from_bytes
from .compare import Comparison
from .images import RANDOM_ONLY, RealImages

Array = np.ndarray[Any, Any]
_FUSED = "the fused graph"
_COMPARISON = Comparison(_FUSED, "the ensemble", f"it is not used: {FUSING_ALTERNATIVE}")
# Largest difference of a value, in units of max(1, largest |value|): both compute the same and differ only in ONNX Runtime's rounding.
FUSED_TOLERANCE = 1e-6


def verify_fused(
    fused: bytes, members: Sequence[bytes], ensemble: Ensemble, images: Array | None, *, max_batch_size: int
) -> dict[str, Any]:
    """Compare every output of a fused graph with the outputs of its members, averaged by the averaging graph, in ONNX Runtime.

    The comparison uses batch 1, 2 and `max_batch_size`, on random images and on `images`. Both sides run with graph optimisation, as they
    are served, because ONNX Runtime decides by the neighbours of a node whether to run it in integers.

    Members that compute in 16-bit floats are compared within `ROUNDED_TOLERANCE`: ONNX Runtime (1.32) rounds a value only if certain
    nodes read it, also without graph optimisation, and a fused graph adds readers to what its members share (measured with a float16 and
    a float32 convolution of the same images: up to 4e-4 of an output).

    Args:
        fused: The bytes of the fused graph.
        members: The bytes of the members' graphs, in the order of `ensemble.members`.
        ensemble: The ensemble.
        images: Real images, float32 (N,C,H,W) in [0, 1]. None: only random images are compared.
        max_batch_size: Largest batch to compare.

    Returns:
        The measurements, as JSON values for the report.

    Raises:
        ExportError: The images do not fit the members, or ONNX Runtime cannot run the graph or a member.
        VerificationError: Names, shapes or values differ. The message contains the place and the difference.
    """
    session = _session(fused, f"cannot be loaded by ONNX Runtime; {FUSING_ALTERNATIVE}", _FUSED)
    outputs = [tensor.name for tensor in session.get_outputs()]
    expected = set(OUTPUTS)
    if [tensor.name for tensor in session.get_inputs()] != ["images"] or set(outputs) != expected:
        inputs = [tensor.name for tensor in session.get_inputs()]
        raise VerificationError(f"the fused graph maps {inputs} to {outputs}, expected ['images'] to {sorted(expected)}; it is not used")
    shape = tuple(session.get_inputs()[0].shape[1:])
    if not all(isinstance(side, int) for side in shape):
        raise ExportError(f"the members take images of the shape {shape}: export them with a fixed size, so that they can be compared")
    if images is not None:
        RealImages(images, "").check_fit(shape)
    num_classes = next(tensor.shape[1] for tensor in session.get_outputs() if tensor.name == "probabilities")
    pipeline = _Pipeline(members, ensemble, num_classes)
    generator = np.random.default_rng(0)
    batches = sorted({1, 2, max_batch_size})
    tolerance = ROUNDED_TOLERANCE if computes_in_float16(model_from_bytes(fused, "the fused graph")) else FUSED_TOLERANCE
    order = generator.permutation(0 if images is None else len(images))  # use every image once before any image twice
    worst: dict[str, float] = dict.fromkeys(sorted(expected), 0.0)
    for batch in batches:
        samples = {"random": generator.random((batch, *shape), np.float32)}
        if images is not None:
            samples["real"] = images[np.resize(order, batch)]
            order = np.roll(order, -batch)
        for kind, sample in samples.items():
            where = f"{batch} {kind} image{'s' if batch > 1 else ''}"
            reference = pipeline.run(sample)
            with translate_errors(f"cannot be run by ONNX Runtime on {where}; {FUSING_ALTERNATIVE}", file=_FUSED):
                got = dict(zip(outputs, session.run(None, {"images": sample}), strict=True))
            differences = {output: _COMPARISON.difference(got[output], reference[output], f"{where}: {output}") for output in worst}
            for output, difference in differences.items():
                _COMPARISON.check(difference, tolerance, "values", f"{where}: {output}")
                worst[output] = max(worst[output], difference.relative)
    return {
        "against": f"the members one by one and their averaging graph, in ONNX Runtime {onnxruntime.__version__}",
        "images": RANDOM_ONLY if images is None else "random images, and the user's or those of the members' data",
        "n": 0 if images is None else min(sum(batches), len(images)),
        "batches": batches,
        "graph_optimisation": "all",
        "largest_difference": worst,
        "tolerance": tolerance,
    }


class _Pipeline:
    """An ensemble in this process: computes what Triton computes."""

    def __init__(self, members: Sequence[bytes], ensemble: Ensemble, num_classes: int) -> None:
        self.names = [f"'{member.model}' (version {member.version})" for member in ensemble.members]
        message = "cannot be loaded by ONNX Runtime; export it again, or take it out of the ensemble"
        self.members = [_session(member, message, name) for member, name in zip(members, self.names, strict=True)]
        self.average = _session(average_onnx(ensemble, num_classes), "cannot be loaded by ONNX Runtime", "the averaging graph")

    def run(self, images: Array) -> dict[str, Array]:
        """Return every output of the ensemble, by name."""
        logits = {}
        for index, (member, name) in enumerate(zip(self.members, self.names, strict=True)):
            with translate_errors("cannot be run by ONNX Runtime; export it again, or take it out of the ensemble", file=name):
                logits[f"logits_{index}"] = member.run(["logits"], {"images": images})[0]
        return dict(zip([tensor.name for tensor in self.average.get_outputs()], self.average.run(None, logits), strict=True))


def _session(content: bytes, message: str, name: str) -> onnxruntime.InferenceSession:
    with translate_errors(message, file=name):
        return cpu_session(content)
