from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defensemble import InputError
from defensemble.probes.outcome import SCHEMA, ProbeOutcome
from defensemble.probes.outcome_reader import outcome_from_json, read_outcome
from defensemble.results import write_result
from defensemble.results.packed import pack
from tests.support.facts import raises
from tests.support.outcomes import attack_outcome, outcome, random_labels, target

FAILED = target("gamma", random_labels(7), [], predicted={}, entropy={}, mutual_information={}, failure="not loaded")
OUTCOMES = {
    "noise": outcome(),
    "attack": attack_outcome(),
    "transfer": outcome(7, is_source_fooled={"sigma 8": np.arange(7) % 2 == 0}, shard=(2, 3), paper=None, gallery=({"row": 3},)),
    "failed": outcome(7, (FAILED,)),
    "empty": outcome(0),
}


def assert_same(a: Any, b: Any) -> None:
    """Assert that two outcomes have the same values, arrays included."""
    if is_dataclass(a):
        assert type(a) is type(b)
        for one in fields(a):
            if one.name not in ("settings", "duration_s"):  # tuples become lists
                assert_same(getattr(a, one.name), getattr(b, one.name))
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)) and a and is_dataclass(a[0]):
        for one_a, one_b in zip(a, b, strict=True):
            assert_same(one_a, one_b)
    else:
        assert a == b


@pytest.mark.parametrize("name", OUTCOMES)
def test_an_outcome_survives_a_file(name: str, tmp_path: Path) -> None:
    written = OUTCOMES[name]
    write_result(tmp_path / "a.json", written.json())
    read = read_outcome(tmp_path / "a.json")
    assert read.json() == written.json()
    assert list(read.json()) == list(written.json())
    assert_same(written, read)


def damaged(change: Callable[[dict[str, Any]], object], of: ProbeOutcome = OUTCOMES["noise"]) -> dict[str, Any]:
    values = of.json()
    change(values)
    return values


def at(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one value of the JSON."""

    def change(values: Any) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return change


IMAGES = ("targets", 0, "per_image")


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda values: values.pop("settings"), "settings"),
        (lambda values: values.pop("targets"), "targets"),
        (at("seed", value="3"), "seed | int"),
        (at("budget", value=1.5), "budget"),
        (at("shard", value=[4, 3]), "shard | [4, 3]"),
        (at("shard", value=[1]), "shard"),
        (at("images", value={}), "images.row"),
        (at("images", "label", value=pack(np.arange(3))), "images.label | [3] | [40]"),
        (at("images", "label", value=pack(np.full(40, -1))), "negative"),
        (at("data", "n", value=41), "data.n"),
        (at("data", "sha256", value="ab"), "data.sha256 | images.digest"),
        (at("conditions", 0, "name", value="sigma 32"), "sigma 32 | twice"),
        (at("conditions", 0, "name", value="clean"), "clean | twice"),
        (at("targets", 0, "name", value="beta"), "beta | twice"),
        (at("targets", 0, "name", value="a" * 256), "names | 255 | 256"),
        (at("targets", 0, "queries", "sent", value=None), "queries.sent"),
        (at(*IMAGES, "predicted", "clean", value=pack(np.zeros(40))), "alpha.predicted.clean"),
        (at(*IMAGES, "predicted", "sigma 9", value=pack(np.arange(40))), "alpha.predicted | sigma 9 | sigma 8"),
        (at(*IMAGES, "entropy", "clean", value=pack(np.zeros(41))), "alpha.entropy.clean | [41] | [40]"),
        (at(*IMAGES, "entropy", value=[]), "entropy"),
        (at("source", value={}), "source.is_source_fooled"),
        (at("source", "is_source_fooled", value={"clean": pack(np.ones(40, np.bool_))}), "source.is_source_fooled | clean"),
        (at("source", "is_source_fooled", value=5), "source.is_source_fooled | 5"),
        (at("checks", 0, "status", value="GOOD"), "status | GOOD"),
        (at("seed", value=-1), "seed | at least 0"),
        (at("budget", value=0), "budget | at least 1"),
        (at("duration_s", value=-5.0), "duration_s | at least 0"),
        (at("targets", 0, "queries", "sent", value=-5), "queries | at least 0"),
    ],
)
def test_damaged_results_are_refused(change: Callable[[dict[str, Any]], object], facts: str) -> None:
    with raises(InputError, facts):
        outcome_from_json(damaged(change))


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (at(*IMAGES, "attack", value={}), "alpha.attack.traces"),
        (at(*IMAGES, "attack", "distance", value=None), "alpha.attack.distance"),
        (at(*IMAGES, "attack", "traces", "lengths", value=pack(np.zeros(40, np.int64))), "alpha.attack.traces.lengths"),
        (at(*IMAGES, "attack", "traces", "distance", value=pack(np.zeros(1))), "alpha.attack.traces.distance"),
        (at(*IMAGES, "attack", "distance", value=pack(np.full(40, np.inf))), "alpha.attack.distance | finite"),
        (at(*IMAGES, "attack", "mean_square", value=pack(np.full(40, -1.0))), "alpha.attack.mean_square | at least 0"),
    ],
)
def test_damaged_attacks_are_refused(change: Callable[[dict[str, Any]], object], facts: str) -> None:
    with raises(InputError, facts):
        outcome_from_json(damaged(change, OUTCOMES["attack"]))


def test_many_large_arrays_are_refused_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble.probes.outcome_reader.MAX_TOTAL_BYTES", 8 * 40 * 20)
    with raises(InputError, "21 | 40"):  # rows, labels, digests, and 2 x 3 x 3 arrays
        outcome_from_json(OUTCOMES["noise"].json())


@pytest.mark.parametrize("values", [None, [], {}, {"schema": "defensemble.probe/3"}, {"schema": ["x"]}, "text"])
def test_what_is_no_result_is_refused(values: Any) -> None:
    with raises(InputError, SCHEMA):
        outcome_from_json(values)


def test_a_result_of_the_older_schema_names_the_command_that_makes_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"schema": "defensemble.probe.noise/1", "probe": "noise"}))
    with raises(InputError, f"old.json | older | defensemble.probe.noise/1 | {SCHEMA} | defensemble probe noise"):
        read_outcome(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000])
def test_a_file_that_is_no_json_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with raises(InputError, "a.json | --out"):
        read_outcome(tmp_path / "a.json")


def test_a_huge_file_and_a_missing_one(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 31)
    with raises(InputError, f"a.json | {1 << 31:,}"):
        read_outcome(tmp_path / "a.json")
    with raises(FileNotFoundError, "b.json"):
        read_outcome(tmp_path / "b.json")


def test_a_device_that_never_ends_is_refused() -> None:
    with raises(OSError, "/dev/zero | device"):
        read_outcome(Path("/dev/zero"))


def test_names_that_are_not_utf_8_can_be_read_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_result(tmp_path / "a.json", replace(OUTCOMES["noise"], data={"name": name}, threat_model="\ud800").json())
    assert str(read_outcome(str(tmp_path / "a.json")).data["name"]).startswith("caf")
