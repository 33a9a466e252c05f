"""The zoo's table, compared with numpy on tiny networks: examples, rates, averages, figures, and missing networks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.zoo.measuring import compare_average, compute_figures, compute_rates, image_sets
from benchmarks.zoo.page import page
from benchmarks.zoo_table import measure
from defensemble_training import TrainingError, build, load_checkpoint, save_checkpoint
from tests.support.untrained import record_of, tiny_spec

EPSILON = 8 / 255


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A source, a standard network, two defective ones, and a missing one."""
    folder = tmp_path_factory.mktemp("zoo")
    names = {"standard": 1.0, "source": 1.0, "keep0.5": 0.5, "keep0.7": 0.7, "keep0.9": 0.9}
    for seed, (name, keep) in enumerate(names.items()):
        if name != "keep0.9":
            spec = tiny_spec(keep=keep, mask_seed=seed)
            torch.manual_seed(seed)
            module = build(spec).train()
            with torch.no_grad():
                for _ in range(20):  # BatchNorm's statistics, without which all images get the same outputs
                    module(torch.rand(32, *spec.input_shape))
            save_checkpoint(folder / f"{name}.safetensors", module, spec, record_of(spec))
    return {name: folder / f"{name}.safetensors" for name in names}


@pytest.fixture(scope="module")
def images() -> Any:
    return (np.random.default_rng(0).integers(0, 256, (30, *tiny_spec().input_shape)) / 255).astype(np.float32)


@pytest.fixture(scope="module")
def labels() -> Any:
    return np.random.default_rng(1).integers(0, tiny_spec().num_classes, 30)


@pytest.fixture(scope="module")
def result(checkpoints: dict[str, Path], images: Any, labels: Any) -> dict[str, Any]:
    measured = measure(checkpoints, images, labels, source="source", batch_size=7, seed=3)
    parsed: dict[str, Any] = json.loads(json.dumps(measured, allow_nan=False))
    return parsed


def counts(hits: Any) -> tuple[int, int]:
    return int(np.sum(hits)), len(hits)


def stated_counts(rate: dict[str, Any]) -> tuple[int, int]:
    return rate["successes"], rate["n"]


def test_examples_and_noise_are_within_radius_and_range_and_have_8_bits(checkpoints: dict[str, Path], images: Any, labels: Any) -> None:
    source = load_checkpoint(checkpoints["source"])[0]
    sets = image_sets(source, images, labels, batch_size=7, seed=3, on_progress=lambda *_: None)
    assert list(sets) == ["clean", "noise", "fgsm", "pgd"]
    assert sets["clean"] is images
    for name in ("noise", "fgsm", "pgd"):
        assert 0 <= sets[name].min() <= sets[name].max() <= 1
        assert 7.5 / 255 < np.abs(sets[name] - images).max() <= EPSILON + 1e-6
        np.testing.assert_allclose(sets[name] * 255, np.rint(sets[name] * 255), atol=1e-4)


def test_kept_examples_equal_the_crafted_ones(checkpoints: dict[str, Path], images: Any, labels: Any, tmp_path: Path) -> None:
    source = load_checkpoint(checkpoints["source"])[0]
    crafted: list[str] = []

    def run(module: torch.nn.Module, of: Any) -> dict[str, Any]:
        return image_sets(
            module, of, labels, batch_size=7, seed=3, on_progress=lambda what, done, total: crafted.append(what), keep_in=tmp_path
        )

    first, count = run(source, images), len(crafted)
    again = run(source, images)
    assert len(crafted) == count > 0
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    run(load_checkpoint(checkpoints["standard"])[0], images)
    run(source, np.ascontiguousarray(images[:, :, ::-1]))
    assert len(crafted) == 3 * count, "other weights or images have other examples"


def test_all_rates_equal_numpy(checkpoints: dict[str, Path], images: Any, labels: Any, result: dict[str, Any]) -> None:
    modules = {name: load_checkpoint(path)[0] for name, path in checkpoints.items() if path.exists()}
    sets = image_sets(modules["source"], images, labels, batch_size=30, seed=3, on_progress=lambda *_: None)

    def probabilities(name: str, what: str) -> Any:
        with torch.no_grad():
            logits = modules[name](torch.from_numpy(sets[what])).numpy().astype(np.float64)
        powers = np.exp(logits)
        return powers / powers.sum(axis=1, keepdims=True)

    right = {name: {what: probabilities(name, what).argmax(1) == labels for what in sets} for name in modules}
    right["average"] = {what: ((probabilities("keep0.5", what) + probabilities("keep0.7", what)) / 2).argmax(1) == labels for what in sets}
    source = right.pop("source")
    all_right = np.all([sets_of_network["clean"] for sets_of_network in right.values()], axis=0)
    output = {name: network["rates"] for name, network in result["networks"].items() if network is not None}
    output["average"] = result["average"]["rates"]
    assert set(output) == set(right)
    for name, hits in right.items():
        for what in sets:
            rates = output[name][what]
            assert stated_counts(rates["accuracy"]) == counts(hits[what])
            if what == "clean":
                assert rates["defense_rate"] is rates["accuracy_where_all_right"] is rates["defense_rate_source_fooled"] is None
                continue
            assert stated_counts(rates["defense_rate"]) == counts(hits[what][hits["clean"]])
            assert stated_counts(rates["accuracy_where_all_right"]) == counts(hits[what][all_right])
            if what == "noise":
                assert rates["defense_rate_source_fooled"] is None
            else:
                assert stated_counts(rates["defense_rate_source_fooled"]) == counts(hits[what][hits["clean"] & ~source[what]])
    for what in sets:
        assert stated_counts(result["source"]["rates"][what]["accuracy"]) == counts(source[what])


def test_intervals_are_wilson_intervals(result: dict[str, Any]) -> None:
    output = result["networks"]["standard"]["rates"]["clean"]["accuracy"]
    share, n, z = output["value"], output["n"], 1.959963984540054
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert output["low"] == pytest.approx((share + z * z / (2 * n)) / (1 + z * z / n) - half)


def test_a_missing_checkpoint_is_not_trained_and_not_averaged(result: dict[str, Any]) -> None:
    assert result["networks"]["keep0.9"] is None
    assert result["average"]["of"] == ["keep0.5", "keep0.7"]
    text = page({**result, "data": {"source": "random images", "digest": "0"}, "quick": True, "duration_s": 1.0}, "result.json")
    assert "| `keep0.9` | not trained | not trained | not trained | not trained |" in text
    assert "| adversarial training (PGD-7) | not run | 87.14 / 77.10 / 78.10 |" in text
    assert "| TLA | not trained by this project | missing |" in text
    assert "None" not in text
    assert "nan" not in text


def test_a_missing_source_is_an_error(checkpoints: dict[str, Path], images: Any, labels: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="checkpoint"):
        measure({**checkpoints, "source": tmp_path / "gone.safetensors"}, images, labels, source="source")


def test_a_result_describes_its_measurement(result: dict[str, Any], checkpoints: dict[str, Path]) -> None:
    assert result["schema"] == "defensemble.benchmark.zoo_table/1"
    assert {"hardware", "versions", "git_commit", "measured_at", "n", "seed", "attacks", "figures"} <= set(result)
    assert "torch" in result["versions"]
    assert result["attacks"]["pgd"] == {
        "preset": "table2-pgd",
        "epsilon": 8 / 255,
        "step_size": 2 / 255,
        "steps": 7,
        "random_start": False,
    }
    assert all(0.02 < change <= EPSILON + 1e-6 for change in result["largest_change"].values())


# Goals


def rates(**accuracies: tuple[float, float]) -> dict[str, Any]:
    return {
        name: {"clean": {"accuracy": {"value": clean}}, "pgd": {"accuracy": {"value": pgd}}} for name, (clean, pgd) in accuracies.items()
    }


def test_both_goals_are_judged_on_one_network() -> None:
    both = {"clean": None, "pgd": None}
    output = compute_figures(rates(standard=(0.86, 0.1), a=(0.95, 0.5), b=(0.6, 0.9), c=(0.92, 0.79)), ["a", "b", "c"], both)
    assert {name: figure["holds"] for name, figure in output.items()} == {
        "standard_clean": True,
        "defective_pgd": True,
        "defective_clean": True,
        "average_minus_best_member_clean": False,
        "average_minus_best_member_pgd": False,
    }
    assert output["defective_pgd"]["network"] == "c"
    assert output["average_minus_best_member_pgd"]["value"] is None
    output = compute_figures(rates(a=(0.95, 0.5), b=(0.6, 0.9)), ["a", "b"], both)
    assert not (output["defective_pgd"]["holds"] and output["defective_clean"]["holds"])


def test_a_goal_must_be_exceeded() -> None:
    output = compute_figures(rates(standard=(0.85, 0.1), a=(0.91, 0.781)), ["a"], {"pgd": {"difference": 0.0}})
    assert [figure["holds"] for figure in output.values()] == [False] * 4


def test_without_a_defective_network_the_goal_is_missed() -> None:
    output = compute_figures(rates(standard=(0.9, 0.1)), [], {"clean": None, "pgd": None})
    assert output["defective_pgd"] == {"value": None, "goal": "> 0.781", "holds": False, "network": None}


def test_the_average_is_compared_image_by_image() -> None:
    labels = np.array([0, 1, 2, 0])
    classes = {"a": np.array([0, 1, 0, 1]), "b": np.array([1, 1, 1, 1]), "average": np.array([0, 0, 2, 0])}
    output = compare_average({name: {"pgd": predicted} for name, predicted in classes.items()}, labels, ["a", "b"], "pgd")
    assert output == {"best_member": "a", "difference": 0.25, "only_average_right": 2, "only_member_right": 1, "n": 4}
    assert compare_average({"a": {"pgd": labels}}, labels, ["a"], "pgd") is None


def test_a_rate_without_images_has_no_value() -> None:
    classes = {"a": {"clean": np.array([1]), "pgd": np.array([0])}}
    output = compute_rates(classes, np.array([0]), {"pgd": np.array([False])})["a"]["pgd"]
    assert output["defense_rate"]["value"] is None
    assert output["accuracy"]["value"] == 1.0
