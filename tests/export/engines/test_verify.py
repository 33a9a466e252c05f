"""Plans compared with their graphs: what agrees, what does not by how much, and what cannot be compared; numpy stands for the GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from defensemble_export import EngineError, fused_onnx
from defensemble_export.engines.verify import OutputsFunction, Array, compare_outputs, onnx_runner, verify_plan
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.plan_manifest import Profile
from tests.support import tiny
from tests.support.facts import assert_facts, raises
from tests.support.fake_tensorrt import MARK, install_runner

PROFILE = Profile((1, *tiny.SHAPE), (4, *tiny.SHAPE), (8, *tiny.SHAPE))
IMAGES = tiny.images(40)


def exact(images: Array) -> dict[str, Array]:
    return {"logits": tiny.logits(1, images).astype(np.float32)}


def skewed(by: float, share: float = 1.0) -> OutputsFunction:
    """Logits that are off by `by` in their first class, for that share of the images."""

    def answer(images: Array) -> dict[str, Array]:
        logits = exact(images)["logits"]
        logits[: round(share * len(logits)), 0] += by
        return {"logits": logits}

    return answer


def test_a_plan_that_answers_alike_is_told_how_far() -> None:
    batches: list[int] = []

    def answer(images: Array) -> dict[str, Array]:
        batches.append(len(images))
        return skewed(4e-6)(images)

    found = compare_outputs(answer, exact, IMAGES, profile=PROFILE, precision="fp32")
    assert batches == [1, 4, 8, *[4] * 10], "the profile's batches, then all images at the best one"
    assert found.images == sum(batches)
    assert found.agreement == 1.0
    assert found.logits is not None
    largest = np.abs(exact(IMAGES)["logits"]).max()
    assert found.logits == pytest.approx(4e-6 / max(1.0, largest), rel=0.2)
    assert_facts(str(found), "100.00% | 53 images")


@pytest.mark.parametrize(
    ("precision", "by", "told"),
    [
        ("fp32", 1e-3, "images in fp32: logits differ by 0.001"),
        ("fp16", 0.1, "images in fp16: probabilities differ by .*, allowed is 0.01"),
        ("int8", 50.0, "53 images in int8: [1-9][0-9] of 53 images get different classes .* at least 90 %"),
    ],
)
def test_a_plan_that_answers_otherwise_is_not_kept(precision: str, by: float, told: str) -> None:
    with pytest.raises(EngineError, match=f"{told}.*the plan is not kept"):
        compare_outputs(skewed(by), exact, IMAGES, profile=PROFILE, precision=precision)


def test_each_precision_has_its_own_tolerance() -> None:
    assert compare_outputs(skewed(1e-3), exact, IMAGES, profile=PROFILE, precision="fp16").agreement >= 0.999
    assert compare_outputs(skewed(0.05), exact, IMAGES, profile=PROFILE, precision="int8").agreement >= 0.9


def test_of_few_images_not_one_may_get_another_class_in_fp16() -> None:
    def close(images: Array) -> dict[str, Array]:
        return {"logits": np.tile(np.array([0, 1e-3, -5], np.float32), (len(images), 1))}

    def swapped(images: Array) -> dict[str, Array]:
        logits = close(images)["logits"]
        return {"logits": logits[:, [1, 0, 2]] if len(images) == 1 else logits}

    with raises(EngineError, "1 of 53 images | 99.9 %"):
        compare_outputs(swapped, close, IMAGES, profile=PROFILE, precision="fp16")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda images: {"probabilities": exact(images)["logits"]}, "probabilities | logits"),
        (lambda images: {"logits": exact(images)["logits"][:, :2]}, "batch 1 | 'logits' | (1, 2) | (1, 3)"),
        (lambda images: {"logits": exact(images)["logits"] * np.nan}, "batch 1 | 'logits' | finite"),
    ],
)
def test_other_outputs(answer: OutputsFunction, told: str) -> None:
    with raises(EngineError, told):
        compare_outputs(answer, exact, IMAGES, profile=PROFILE, precision="fp32")


@pytest.mark.parametrize("images", [IMAGES[:0], IMAGES[:, :, :2], IMAGES[0], IMAGES.astype(np.float64)])
def test_images_that_do_not_fit(images: Array) -> None:
    with pytest.raises(EngineError, match=r"plans are compared .*--images FILE\.npy"):
        compare_outputs(exact, exact, images, profile=PROFILE, precision="fp32")


def test_a_fused_graph_is_compared_by_its_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = Ensemble("e", (Member("a", 1), Member("b", 1)))
    content = fused_onnx([tiny.linear_onnx(1), tiny.linear_onnx(2)], ensemble)
    (tmp_path / "model.onnx").write_bytes(content)
    (tmp_path / "model.plan").write_bytes(MARK + content)
    install_runner(monkeypatch)
    found = verify_plan(tmp_path / "model.plan", tmp_path / "model.onnx", IMAGES, profile=PROFILE, precision="fp32")
    assert found.logits is None
    assert found.agreement == 1.0
    runner = onnx_runner(tmp_path / "model.onnx", "fp32")
    assert set(runner(IMAGES)) == {"probabilities", "member_probabilities", "entropy", "mutual_information"}
    install_runner(monkeypatch, add=1e-3)
    with pytest.raises(EngineError, match="images in fp32: probabilities differ by"):
        verify_plan(tmp_path / "model.plan", tmp_path / "model.onnx", IMAGES, profile=PROFILE, precision="fp32")


def test_a_plan_that_cannot_be_loaded_and_a_runner_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny.linear_onnx(1))
    (tmp_path / "model.plan").write_bytes(b"damaged")

    def verify() -> None:
        verify_plan(tmp_path / "model.plan", tmp_path / "model.onnx", IMAGES, profile=PROFILE, precision="fp32")

    install_runner(monkeypatch)
    with pytest.raises(EngineError, match="could not deserialize engine"):
        verify()
    monkeypatch.setitem(sys.modules, "polygraphy.backend.trt", None)
    with raises(EngineError, "Polygraphy | pip install polygraphy | --no-compare"):
        verify()
