"""The figures of the benchmark of the mask-aware form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.common.figures import exit_status
from benchmarks.mask_aware import Effort, measure
from benchmarks.masking.figures import compute_figures, grid_speeds
from benchmarks.masking.page import where_standard_is_ahead
from tests.support.facts import assert_facts

TINY = Effort((0.1,), (0.1,), ("resnet18",), (1, 16), (1, 16), rounds=1, seconds=0.01, served_s=0.2, width=8, members=2)


def speeds(**batches: float) -> dict[str, Any]:
    return {batch.removeprefix("b"): {"mask_aware": {"speed": {"median": speed}}} for batch, speed in batches.items()}


def test_figures_compare_medians_with_the_goals() -> None:
    measured = {
        "detail": {"0.1": speeds(b1=1.6, b16=1.8)},
        "members": speeds(b16=2.0),
        "grid": {"vgg19": {"0.1": {"time": speeds(b1=0.96, b16=1.31)}, "0.7": {"operator": None}}},
        "served": {"speed": {"median": 1.9}},
        "costs": {"load": {"median": 1.0}, "resident": {"median": 1.3}, "file": 1.001},
    }
    figures = compute_figures(measured)
    missed = {name for name, figure in figures.items() if not figure["holds"]}
    assert missed == {"resnet18_keep_0.1_batch_16", "slowest_of_the_grid", "resident"}
    assert figures["slowest_of_the_grid"]["value"] == 0.96
    assert figures["vgg19_keep_0.1_batch_16"]["holds"]
    assert exit_status(figures) == 1
    assert [name for name, _ in grid_speeds(measured["grid"])] == ["vgg19, keep 0.1, batch 1", "vgg19, keep 0.1, batch 16"]


def test_page_names_only_runtimes_that_were_measured() -> None:
    def sentence(ours: float, **others: float) -> str:
        entry = {name: {"ms_per_image": {"median": value}} for name, value in {"mask_aware": ours, **others}.items()}
        return where_standard_is_ahead({"detail": {"0.1": {"16": entry}}})

    assert "both runtimes" in sentence(1, standard=2, standard_openvino=3)
    assert_facts(sentence(3, standard=4, standard_openvino=2), "ahead | keep 0.1 at batch 16")
    for ours in (1, 3):
        assert_facts(sentence(ours, standard=2), "in ONNX Runtime | OpenVINO was not measured")


@pytest.mark.slow
def test_all_forms_are_measured_and_agree() -> None:
    images = np.random.default_rng(0).random((128, 3, 32, 32), np.float32)
    measured = measure(images, TINY)
    assert set(measured["detail"]["0.1"]["16"]) >= {"dense", "mask_aware", "standard"}
    assert measured["grid"]["resnet18"]["0.1"]["difference"] < 1e-5
    assert measured["served"]["largest_difference"] < 1e-5
    assert {"five_members_batch_16", "served", "load", "resident", "file"} <= set(measured["figures"])
