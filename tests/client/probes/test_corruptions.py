from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defensemble import InputError, MissingExtraError
from defensemble.probes import Corruptions, FunctionTarget, LabelledImages, ProbeImage, measure
from defensemble.probes.corruptions import CORRUPTIONS, _functions
from tests.support.facts import raises

Array = np.ndarray[Any, Any]
NATURAL = np.clip(np.random.default_rng(0).random((6, 3, 32, 32)).cumsum(2).cumsum(3) / 400, 0, 1).astype(np.float32)
DATA = LabelledImages(NATURAL, np.array([0, 1, 0, 1, 0, 1]))
ROWS = np.arange(6)


def classify(images: Array) -> Array:
    scores: Array = np.eye(2, dtype=np.float32)[(images.mean((1, 2, 3)) > 0.5).astype(int)]
    return scores


def corrupted(probe: Corruptions, data: LabelledImages, rows: Array) -> dict[tuple[str, int], Array]:
    perturb = probe.prepare(data, rows, lambda what, done, total: None)
    return {
        (condition.name, int(row)): perturb(ProbeImage(image, 0, int(row)), condition, probe.rng(condition, int(row)))
        for condition in probe.conditions()
        for image, row in zip(data.images, rows, strict=True)
    }


def test_impulse_noise_has_the_amounts_of_the_paper_and_is_seeded() -> None:
    grey = np.full((3, 200, 200), 0.5, np.float32)
    probe = Corruptions(("impulse_noise",))
    for condition, amount in zip(probe.conditions(), (0.03, 0.06, 0.09, 0.17, 0.27), strict=True):
        noisy = probe.perturb(ProbeImage(grey, 0, 5), condition, probe.rng(condition, 5))
        assert (noisy == 0).mean() == pytest.approx(amount / 2, rel=0.05)
        assert (noisy == 1).mean() == pytest.approx(amount / 2, rel=0.05)
        np.testing.assert_array_equal(noisy, probe.perturb(ProbeImage(grey, 0, 5), condition, probe.rng(condition, 5)))
        assert not np.array_equal(noisy, probe.perturb(ProbeImage(grey, 0, 6), condition, probe.rng(condition, 6)))


def test_a_corruption_depends_on_seed_corruption_severity_and_row_only(tmp_path: Path) -> None:
    """Those that take long are in the slow test below."""
    names = ("gaussian_noise", "impulse_noise", "fog", "frost", "motion_blur", "jpeg_compression")
    probe = Corruptions(names, (1, 5), cache=tmp_path / "all")
    np.random.seed(7)
    state = np.random.get_state()
    whole = corrupted(probe, DATA, ROWS)
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(state, after, strict=True))
    shards: dict[tuple[str, int], Array] = {}
    for number in range(2):
        part = np.arange(number, 6, 2)
        probe = Corruptions(tuple(reversed(names)), (5, 1), cache=tmp_path / str(number))
        shards |= corrupted(probe, LabelledImages(DATA.images[part], DATA.labels[part]), ROWS[part])
    assert whole.keys() == shards.keys()
    for key, image in whole.items():
        np.testing.assert_array_equal(image, shards[key])
        assert image.shape == (3, 32, 32)
        assert image.dtype == np.float32
        np.testing.assert_array_equal(np.rint(image * 255).astype(np.float32) / 255, image)
        assert 0 <= image.min() <= image.max() <= 1
    other = corrupted(Corruptions(("gaussian_noise",), (1,), cache=tmp_path / "seed", seed=1), DATA, ROWS)
    assert all(not np.array_equal(image, whole[key]) for key, image in other.items())


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 16), (3, 8, 8), (3, 64, 48)])
def test_all_corruptions_at_all_severities(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(1).random((3, *shape), np.float32)
    probe, rows = Corruptions(cache=tmp_path), np.array([4, 7, 9])
    kept = corrupted(probe, LabelledImages(images, np.zeros(3, np.int64)), rows)
    assert len(kept) == 3 * 15 * 5
    for condition in probe.conditions():
        for image, row in zip(images, rows.tolist(), strict=True):
            direct = probe.perturb(ProbeImage(image, 0, row), condition, probe.rng(condition, row))
            np.testing.assert_array_equal(direct, kept[condition.name, row])
            assert direct.shape == shape
            assert direct.dtype == np.float32
            assert not np.array_equal(direct, image)


@pytest.mark.slow
def test_severities_grow(tmp_path: Path) -> None:
    """The distance to the clean image grows from severity 1 to 5, except for those that the package weakens as they get local."""
    images = corrupted(Corruptions(cache=tmp_path), DATA, ROWS)
    distance = {
        (name, severity): np.mean([np.square(images[f"{name} {severity}", row] - NATURAL[row]).mean() for row in range(6)])
        for name in CORRUPTIONS
        for severity in (1, 5)
    }
    assert [name for name in CORRUPTIONS if distance[name, 5] <= distance[name, 1]] in ([], ["elastic_transform"])


@pytest.mark.slow
def test_measured(tmp_path: Path) -> None:
    probe = Corruptions(("gaussian_noise", "brightness"), (1, 3), cache=tmp_path)
    outcome = measure(probe, [FunctionTarget("a", classify)], DATA, rows=ROWS)
    for (name, row), image in corrupted(probe, DATA, ROWS).items():
        assert outcome.targets[0].predicted[name][row] == classify(image[None])[0].argmax()
    assert outcome.targets[0].details["mean_error_by_corruption"].keys() == {"gaussian_noise", "brightness"}


def test_the_summary_is_the_mean_over_severities_and_then_over_corruptions() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 500)
    names = ("clean", "fog 1", "fog 5", "glass_blur 1", "glass_blur 5", "snow 1")
    predicted = {name: random.integers(0, 3, 500) for name in names}
    summary = Corruptions.summary({}, np.arange(500), labels, predicted)
    error = {name: (predicted[name] != labels).mean() for name in names}
    by_name = {"fog": (error["fog 1"] + error["fog 5"]) / 2, "glass_blur": (error["glass_blur 1"] + error["glass_blur 5"]) / 2}
    by_name["snow"] = error["snow 1"]
    assert {name: entry["value"] for name, entry in summary["mean_error_by_corruption"].items()} == pytest.approx(by_name)
    assert summary["mean_error"]["value"] == pytest.approx(sum(by_name.values()) / 3)
    resampled = [
        np.mean([(predicted["fog 1"] != labels)[rows].mean(), (predicted["fog 5"] != labels)[rows].mean()])
        for rows in random.integers(0, 500, (2000, 500))
    ]
    fog = summary["mean_error_by_corruption"]["fog"]
    np.testing.assert_allclose([fog["low"], fog["high"]], np.percentile(resampled, [2.5, 97.5]), atol=0.005)
    assert Corruptions.summary({}, np.arange(500), labels, {"clean": labels}) == {}


@pytest.mark.slow
def test_later_runs_use_the_files_and_other_images_do_not(tmp_path: Path) -> None:
    probe = Corruptions(("impulse_noise",), (1, 2), cache=tmp_path)
    corrupted(probe, DATA, ROWS)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 4
    stated = json.loads(next(path for path in files if path.suffix == ".json").read_text())
    assert stated["images"] == DATA.digest
    assert stated["libraries"]["numpy"] == np.__version__
    assert {"corrupt_tta", "cv2"} < stated["libraries"].keys()
    corrupted(Corruptions(("impulse_noise",), (2,), cache=tmp_path), DATA, ROWS)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    corrupted(probe, LabelledImages(NATURAL[::-1].copy(), DATA.labels), ROWS)
    corrupted(probe, DATA, ROWS + 1)
    assert len(list(tmp_path.iterdir())) == 12


def test_the_folder_of_the_files_is_no_setting(tmp_path: Path) -> None:
    assert Corruptions(cache=tmp_path).settings() == Corruptions().settings()
    assert "cache" not in Corruptions().settings()


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: Corruptions(("fig",)), "corruptions | fig | fog"),
        (lambda: Corruptions(()), "corruptions | none"),
        (lambda: Corruptions(severities=(0,)), "severities | 0 | 1, 2, 3, 4, 5"),
        (lambda: Corruptions(severities=(2, 2)), "severities | 2, 2"),
    ],
)
def test_unknown_names_and_severities_are_rejected(make: Callable[[], object], facts: str) -> None:
    with raises(InputError, facts):
        make()


def test_images_of_two_channels_are_rejected(tmp_path: Path) -> None:
    data = LabelledImages(np.zeros((2, 2, 8, 8), np.float32), np.zeros(2, np.int64))
    with raises(InputError, "1 or 3 | 2"):
        Corruptions(cache=tmp_path).prepare(data, np.arange(2), lambda what, done, total: None)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("raise ModuleNotFoundError('No module named corrupt_tta')", "pip install 'defensemble[probes]' | corrupt_tta"),
        ("raise ImportError('libGL.so.1: cannot open shared object file')", "libgl1 | libGL.so.1 | opencv-python-headless"),
        ("corruption_dict = {}", "frost1.png | frost6.jpg | pip install --force-reinstall corrupt-tta"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, facts: str) -> None:
    (tmp_path / "corrupt_tta").mkdir()
    (tmp_path / "corrupt_tta/__init__.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "corrupt_tta", raising=False)
    _functions.cache_clear()
    try:
        with raises(MissingExtraError, facts):
            _functions()
    finally:
        sys.modules.pop("corrupt_tta", None)
        _functions.cache_clear()
