"""The comparison of plans with their graphs: agreement, differences, and unsuitable inputs. numpy replaces the GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from defensemble_export import EngineError, fused_onnx
from defensemble_export.engines.verify import Array, OutputsFunction, compare_outputs, onnx_runner, verify_plan
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.plan_manifest import OptimizationProfile
from tests.support import tiny
from tests.support.facts import assert_facts, raises
from tests.support.fake_tensorrt import MARK, install_runner

PROFILE = OptimizationProfile((1, *tiny.SHAPE), (4, *tiny.SHAPE), (8, *tiny.SHAPE))
IMAGES = tiny.images(40)


def exact(images: Array) -> dict[str, Array]:
    return {"logits": tiny.logits(1, images).astype(np.float32)}


def skewed(by: float, share: float = 1.0) -> OutputsFunction:
    """Return a function whose logits differ by `by` in the first class, for a share of the images."""

    def answer(images: Array) -> dict[str, Array]:
        logits = exact(images)["logits"]
        logits[: round(share * len(logits)), 0] += by
        return {"logits": logits}

    return answer


def test_a_plan_with_equal_outputs_reports_its_agreement() -> None:
    batches: list[int] = []

    def answer(images: Array) -> dict[str, Array]:
        batches.append(len(images))
        return skewed(4e-6)(images)

    agreement = compare_outputs(answer, exact, IMAGES, profile=PROFILE, precision="fp32")
    assert batches == [1, 4, 8, *[4] * 10], "the profile's batches, then all images at the best one"
    assert agreement.images == sum(batches)
    assert agreement.agreement == 1.0
    assert agreement.logits is not None
    largest = np.abs(exact(IMAGES)["logits"]).max()
    assert agreement.logits == pytest.approx(4e-6 / max(1.0, largest), rel=0.2)
    assert_facts(str(agreement), "100.00% | 53 images")


@pytest.mark.parametrize(
    ("precision", "by", "facts"),
    [
        ("fp32", 1e-3, "images in fp32: logits differ by 0.001"),
        ("fp16", 0.1, "images in fp16: probabilities differ by .*.*expected at most 0.01"),
        ("int8", 50.0, "53 images in int8: [1-9][0-9] of 53 images get different classes .* at least 90 %"),
    ],
)
def test_a_plan_with_different_outputs_is_not_kept(precision: str, by: float, facts: str) -> None:
    with pytest.raises(EngineError, match=f"{facts}.*the plan is not kept"):
        compare_outputs(skewed(by), exact, IMAGES, profile=PROFILE, precision=precision)


def test_each_precision_has_its_own_tolerance() -> None:
    assert compare_outputs(skewed(1e-3), exact, IMAGES, profile=PROFILE, precision="fp16").agreement >= 0.999
    assert compare_outputs(skewed(0.05), exact, IMAGES, profile=PROFILE, precision="int8").agreement >= 0.9


def test_no_class_may_differ_in_fp16_on_few_images() -> None:
    def close(images: Array) -> dict[str, Array]:
        return {"logits": np.tile(np.array([0, 1e-3, -5], np.float32), (len(images), 1))}

    def swapped(images: Array) -> dict[str, Array]:
        logits = close(images)["logits"]
        return {"logits": logits[:, [1, 0, 2]] if len(images) == 1 else logits}

    with raises(EngineError, "1 of 53 images | 99.9 %"):
        compare_outputs(swapped, close, IMAGES, profile=PROFILE, precision="fp16")


@pytest.mark.parametrize(
    ("answer", "facts"),
    [
        (lambda images: {"probabilities": exact(images)["logits"]}, "probabilities | logits"),
        (lambda images: {"logits": exact(images)["logits"][:, :2]}, "batch 1 | 'logits' | (1, 2) | (1, 3)"),
        (lambda images: {"logits": exact(images)["logits"] * np.nan}, "batch 1 | 'logits' | finite"),
    ],
)
def test_a_plan_with_other_outputs_is_rejected(answer: OutputsFunction, facts: str) -> None:
    with raises(EngineError, facts):
        compare_outputs(answer, exact, IMAGES, profile=PROFILE, precision="fp32")


@pytest.mark.parametrize("images", [IMAGES[:0], IMAGES[:, :, :2], IMAGES[0], IMAGES.astype(np.float64)])
def test_images_that_do_not_fit_are_rejected(images: Array) -> None:
    with pytest.raises(EngineError, match=r"plans are compared .*--images FILE\.npy"):
        compare_outputs(exact, exact, images, profile=PROFILE, precision="fp32")


def test_a_fused_graph_is_compared_by_its_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = Ensemble("e", (Member("a", 1), Member("b", 1)))
    content = fused_onnx([tiny.linear_onnx(1), tiny.linear_onnx(2)], ensemble)
    (tmp_path / "model.onnx").write_bytes(content)
    (tmp_path / "model.plan").write_bytes(MARK + content)
    install_runner(monkeypatch)
    agreement = verify_plan(tmp_path / "model.plan", tmp_path / "model.onnx", IMAGES, profile=PROFILE, precision="fp32")
    assert agreement.logits is None
    assert agreement.agreement == 1.0
    runner = onnx_runner(tmp_path / "model.onnx", "fp32")
    assert set(runner(IMAGES)) == {"probabilities", "member_probabilities", "entropy", "mutual_information"}
    install_runner(monkeypatch, add=1e-3)
    with pytest.raises(EngineError, match="images in fp32: probabilities differ by"):
        verify_plan(tmp_path / "model.plan", tmp_path / "model.onnx", IMAGES, profile=PROFILE, precision="fp32")


def test_a_broken_plan_and_a_missing_polygraphy_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
