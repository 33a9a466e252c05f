"""Does a fused graph answer what the ensemble of its members does?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

from defensemble_repository.configs import OUTPUTS
from defensemble_repository.ensemble import Ensemble

from ..errors import ExportError, VerificationError
from ..graphs.averaging import average_onnx
from ..graphs.fusion import FUSING_ALTERNATIVE
from ..graphs.loading import cpu_session, translate_errors
from .compare import Comparison
from .images import RANDOM_ONLY, RealImages

Array = np.ndarray[Any, Any]
_FUSED = "the fused graph"
_COMPARISON = Comparison(_FUSED, "the ensemble", "it is not used")
# Largest difference of a value, in units of max(1, largest |value|): both compute the same, and differ where ONNX Runtime rounds otherwise.
FUSED_TOLERANCE = 1e-6


def verify_fused(
    fused: bytes, members: Sequence[bytes], ensemble: Ensemble, images: Array | None, *, max_batch_size: int
) -> dict[str, Any]:
    """Compare a fused graph with ONNX Runtime's answers of `members`, averaged by the ensemble's own graph, output by output.

    On `images` (N,C,H,W), where there are any, and on random ones, at batch 1, 2 and `max_batch_size`, both with ONNX Runtime's graph
    optimisation, as they are served: it decides by what stands around a node whether that is run in integers. Returns what was measured,
    for a JSON file.

    Raises:
        ExportError: `images` are not float32 of the members' shape in [0, 1], or ONNX Runtime does not run the graph or a member.
        VerificationError: names, shapes or values differ; says where and by how much.
    """
    one = _session(fused, f"is not loaded by ONNX Runtime; {FUSING_ALTERNATIVE}", _FUSED)
    expected = set(OUTPUTS)
    if [tensor.name for tensor in one.get_inputs()] != ["images"] or {tensor.name for tensor in one.get_outputs()} != expected:
        tensors = [tensor.name for tensor in (*one.get_inputs(), *one.get_outputs())]
        raise VerificationError(f"the fused graph takes and gives {tensors}, expected images to {sorted(expected)}")
    shape = tuple(one.get_inputs()[0].shape[1:])
    if not all(isinstance(side, int) for side in shape):
        raise ExportError(f"the members take images of {shape}: export them with a fixed size, of which images can be made to compare them")
    if images is not None:
        RealImages(images, "").check_fit(shape)
    pipeline = _Pipeline(members, ensemble, next(tensor.shape[1] for tensor in one.get_outputs() if tensor.name == "probabilities"))
    generator = np.random.default_rng(0)
    batches = sorted({1, 2, max_batch_size})
    order = generator.permutation(0 if images is None else len(images))  # no image twice before all were taken once
    worst: dict[str, float] = dict.fromkeys(sorted(expected), 0.0)
    for batch in batches:
        samples = {"random": generator.random((batch, *shape), np.float32)}
        if images is not None:
            samples["real"] = images[np.resize(order, batch)]
            order = np.roll(order, -batch)
        for kind, sample in samples.items():
            where = f"{batch} {kind} image{'s' if batch > 1 else ''}"
            right = pipeline.answers(sample)
            with translate_errors(f"does not run in ONNX Runtime on {where}; {FUSING_ALTERNATIVE}", file=_FUSED):
                got = dict(zip([tensor.name for tensor in one.get_outputs()], one.run(None, {"images": sample}), strict=True))
            found = {output: _COMPARISON.difference(got[output], right[output], f"{where}: {output}") for output in worst}
            for output, difference in found.items():
                _COMPARISON.check(difference, FUSED_TOLERANCE, "values", f"{where}: {output}")
                worst[output] = max(worst[output], difference.relative)
    return {
        "against": f"the members one by one and their averaging graph, in ONNX Runtime {onnxruntime.__version__}",
        "images": RANDOM_ONLY if images is None else "random images, and the user's or those of the members' data",
        "n": 0 if images is None else min(sum(batches), len(images)),
        "batches": batches,
        "graph_optimisation": "all",
        "largest_difference": worst,
    }


class _Pipeline:
    """What Triton does with an ensemble, in this process."""

    def __init__(self, members: Sequence[bytes], ensemble: Ensemble, num_classes: int) -> None:
        self.names = [f"'{vote.model}' (version {vote.version})" for vote in ensemble.members]
        message = "is not loaded by ONNX Runtime; export it again, or take it out of the ensemble"
        self.members = [_session(member, message, name) for member, name in zip(members, self.names, strict=True)]
        self.average = _session(average_onnx(ensemble, num_classes), "is not loaded by ONNX Runtime", "the averaging graph")

    def answers(self, images: Array) -> dict[str, Array]:
        """Every output of the ensemble, by name."""
        logits = {}
        for index, (member, name) in enumerate(zip(self.members, self.names, strict=True)):
            with translate_errors("does not run in ONNX Runtime; export it again, or take it out of the ensemble", file=name):
                logits[f"logits_{index}"] = member.run(["logits"], {"images": images})[0]
        return dict(zip([tensor.name for tensor in self.average.get_outputs()], self.average.run(None, logits), strict=True))


def _session(content: bytes, message: str, what: str) -> onnxruntime.InferenceSession:
    with translate_errors(message, file=what):
        return cpu_session(content)
