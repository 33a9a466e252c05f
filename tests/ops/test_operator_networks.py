"""Whole networks on the operator against plain ONNX Runtime: every architecture, pattern and class of batches."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from defensemble_export.graphs.mask_aware import mask_aware_from_onnx
from defensemble_ops.library import runs_of_this_thread
from tests.support import masked
from tests.support.masked import masked_onnx
from tests.support.masked_networks import ARCHITECTURES, images as smooth_images, masked_network
from tests.support.operator_programs import BATCHES, Array, session_of

IMAGES = smooth_images(max(BATCHES))


@pytest.mark.slow  # tracing takes 10 to 40 s for each of the large ones
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_the_plain_graph(architecture: str) -> None:
    for pattern in ("neuron", "shared"):
        compare(masked_network(architecture, 0.2, pattern), IMAGES)


def test_logits_of_a_small_network() -> None:
    compare(masked_onnx(), masked.images(max(BATCHES)))


def compare(plain: onnx.ModelProto, images: Array) -> None:
    node = mask_aware_from_onnx(plain, "on").model
    expected = onnxruntime.InferenceSession(plain.SerializeToString(), providers=["CPUExecutionProvider"])
    want = np.asarray(expected.run(["logits"], {"images": images})[0])
    for threads in (1, 2):
        session = session_of(node, threads=threads)
        before = runs_of_this_thread()
        for batch in BATCHES:
            got = np.asarray(session.run(["logits"], {"images": images[:batch]})[0])
            np.testing.assert_allclose(got, want[:batch], rtol=0, atol=1e-5 * max(1, np.abs(want).max()))
            assert (got.argmax(1) == want[:batch].argmax(1)).all()
        assert runs_of_this_thread() - before == len(BATCHES)
