"""The benchmark of precisions on tiny networks: rates compared with numpy, figures, masks, and the page."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.common.figures import exit_status
from benchmarks.precision.measuring import compare_with_float32, time_inference
from benchmarks.precision.page import page
from benchmarks.precisions import SCHEMA, compare_int8_speed, compute_figures, measure
from defensemble import wilson
from defensemble_training import build, save_checkpoint
from tests.support.checkout import ROOT
from tests.support.converted import network
from tests.support.untrained import record_of, tiny_spec

FORMS = {"fp32", "fp16", "int8"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(0).random((64, *tiny_spec().input_shape), np.float32)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, images: Any) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("precisions")
    for seed, keep in enumerate((1.0, 0.3)):
        spec = tiny_spec(keep=keep, width=4)
        torch.manual_seed(seed)
        module = build(spec).train()
        with torch.no_grad():
            for _ in range(20):
                module(torch.from_numpy(images))
        save_checkpoint(folder / f"keep{keep:g}.safetensors", module.eval(), spec, record_of(spec))
    checkpoints = {name: folder / f"{name}.safetensors" for name in ("keep1", "keep0.3")}
    labels = np.random.default_rng(1).integers(0, 3, len(images))
    result = measure(checkpoints, images, labels, images[:16], wide={"wide": {"keep": 0.5, "width": 4}}, rounds=3, seconds=0.001)
    parsed: dict[str, Any] = json.loads(json.dumps(result, allow_nan=False))
    return parsed


@pytest.mark.slow
def test_every_form_is_measured(measured: dict[str, Any]) -> None:
    assert list(measured["networks"]) == ["keep1", "keep0.3"]
    for name, forms in measured["networks"].items():
        assert set(forms) == FORMS
        assert forms["fp16"]["file_bytes"] < forms["fp32"]["file_bytes"]
        masks = {entry["mask_bytes"] for entry in forms.values()}
        assert len(masks) == 1
        assert (masks == {0}) == (name == "keep1")
        for entry in forms.values():
            assert entry["accuracy"]["n"] == entry["agreement"]["n"] == 64
            assert set(entry["time"]) == {"1", "16", "64"}
            assert len(entry["load_ms"]["rounds"]) == 3
        assert forms["fp32"]["agreement"]["value"] == 1
        assert forms["fp32"]["largest_probability_difference"] == 0
    saved = measured["networks"]["keep0.3"]["fp32"]
    assert saved["packed_masks"]["file_bytes"] != saved["file_bytes"]
    assert set(measured["wide"]["wide"]) == FORMS
    assert set(measured["figures"]) == {"fp16_agreement", "fp16_probability_difference", "int8_agreement", "int8_accuracy_points"}
    assert set(measured["int8_beside_fp32"]) == {"keep1", "keep0.3", "wide"}


def test_rates_equal_numpy() -> None:
    generator = np.random.default_rng(0)
    logits, float32, labels = generator.normal(size=(50, 4)), generator.normal(size=(50, 4)), generator.integers(0, 4, 50)
    entry = compare_with_float32(logits, float32, labels)
    correct, fp32_correct = int((logits.argmax(1) == labels).sum()), int((float32.argmax(1) == labels).sum())
    same = int((logits.argmax(1) == float32.argmax(1)).sum())
    assert (entry["accuracy"]["successes"], entry["agreement"]["successes"]) == (correct, same)
    assert (entry["agreement"]["low"], entry["agreement"]["high"]) == wilson(same, 50)
    assert entry["accuracy_points"] == pytest.approx(2 * (correct - fp32_correct))
    assert entry["only_this_right"] - entry["only_fp32_right"] == correct - fp32_correct
    powers = [np.exp(values) / np.exp(values).sum(axis=1, keepdims=True) for values in (logits, float32)]
    assert entry["largest_probability_difference"] == pytest.approx(np.abs(powers[0] - powers[1]).max())


def entry_with(agreement: float, points: float, difference: float) -> dict[str, Any]:
    return {"agreement": {"value": agreement}, "accuracy_points": points, "largest_probability_difference": difference}


def test_goals_are_judged_on_the_worst_network() -> None:
    networks = {
        "good": {"fp16": entry_with(1.0, 0.0, 0.001), "int8": entry_with(0.99, 0.1, 0.1)},
        "worst": {"fp16": entry_with(0.9985, 0.0, 0.011), "int8": entry_with(0.979, -0.6, 0.2)},
        "middle": {"fp16": entry_with(0.9995, 0.0, 0.002), "int8": entry_with(0.985, 0.4, 0.1)},
    }
    figures = compute_figures(networks)
    assert {name: (figure["value"], figure["network"], figure["holds"]) for name, figure in figures.items()} == {
        "fp16_agreement": (0.9985, "worst", False),
        "fp16_probability_difference": (0.011, "worst", False),
        "int8_agreement": (0.979, "worst", False),
        "int8_accuracy_points": (0.6, "worst", False),
    }
    assert exit_status(figures) == 1
    del networks["worst"]
    figures = compute_figures(networks)
    assert [figure["value"] for figure in figures.values()] == [0.9995, 0.002, 0.985, 0.4]
    assert exit_status(figures) == 0


def test_speed_is_relative_to_the_first_form() -> None:
    model = network()
    entry = time_inference({"fp32": model, "again": model}, np.zeros((4, 1, 16, 16), np.float32), (1, 4), rounds=3, seconds=0.001)
    for batch in ("1", "4"):
        assert entry["fp32"][batch]["speed_by_fp32"]["rounds"] == [1, 1, 1]
        first, second = (entry[form][batch]["ms_per_image"]["rounds"] for form in ("fp32", "again"))
        ratios = entry["again"][batch]["speed_by_fp32"]["rounds"]
        assert ratios == pytest.approx([ours / theirs for ours, theirs in zip(first, second, strict=True)], rel=0.1)


def test_int8_is_faster_or_slower_only_if_every_round_agrees() -> None:
    ranges = {"1": (1.01, 1.3), "16": (0.99, 1.2), "64": (0.7, 0.98)}
    times = {batch: {"speed_by_fp32": {"min": low, "max": high}} for batch, (low, high) in ranges.items()}
    assert compare_int8_speed({"net": {"int8": {"time": times}}}) == {"net": {"1": "faster", "16": "alike", "64": "slower"}}


def test_the_kept_figures_follow_from_the_result() -> None:
    path = ROOT / "docs/results/precisions.json"
    result = json.loads(path.read_text())
    assert result["schema"] == SCHEMA
    assert (result["n"], result["quick"], len(result["networks"])) == (10_000, False, 7)
    assert result["figures"] == compute_figures(result["networks"])
    assert result["int8_beside_fp32"] == compare_int8_speed({**result["networks"], **result["wide"]})
    assert page(result, path.name).count("**reached**") + page(result, path.name).count("**not reached**") == 4
