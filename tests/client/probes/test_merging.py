from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from defensemble import InputError
from defensemble.probes import FunctionTarget, LabelledImages, Noise, RunOptions
from defensemble.probes.base import Condition
from defensemble.probes.gallery import PER_TARGET
from defensemble.probes.measuring import measure
from defensemble.probes.merging import SHARD_PROVENANCE, TARGET_PROVENANCE, merge
from defensemble.probes.outcome import Check, ProbeOutcome
from defensemble.probes.outcome_reader import outcome_from_json
from tests.support.facts import assert_facts, raises
from tests.support.outcomes import attack_outcome, outcome, split

TIME = {"duration_s", "measured_at", SHARD_PROVENANCE, TARGET_PROVENANCE}


def without_time(whole: ProbeOutcome) -> dict[str, Any]:
    return {key: value for key, value in whole.json().items() if key not in TIME}


GALLERY = tuple({"target": name, "row": row, "condition": "sigma 8", "n": row} for name in ("alpha", "beta") for row in (1, 5, 7, 31))
TRANSFER = outcome(70, is_source_fooled={"sigma 8": np.arange(70) % 3 == 0}, gallery=GALLERY, details={"surrogates": ["a"]})


@pytest.mark.parametrize("whole", [outcome(64), attack_outcome(50), TRANSFER], ids=["noise", "attack", "transfer"])
def test_sixteen_shards_make_the_outcome_of_the_whole(whole: ProbeOutcome) -> None:
    shards = split(whole, 16)
    assert {len(shard.rows) for shard in shards} != {0}
    random.Random(0).shuffle(shards)
    read = [outcome_from_json(shard.json()) for shard in shards]  # as from files
    merged = merge(read)
    assert without_time(merged) == without_time(whole)
    assert merged.duration_s == pytest.approx(whole.duration_s, abs=0.02)
    assert merged.provenance["measured_at"] == "2024-01-01T00:00:16+00:00"
    assert merged.provenance[SHARD_PROVENANCE]["3/16"] == {"measured_at": "2024-01-01T00:00:03+00:00"}
    assert outcome_from_json(merged.json()).json() == merged.json()


def test_shards_that_are_measured_one_by_one_make_the_outcome_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    data = LabelledImages(rng.random((24, 1, 4, 4), dtype=np.float32), rng.integers(3, size=24))

    def measured(part: slice, shard: tuple[int, int] | None) -> ProbeOutcome:
        targets = [FunctionTarget("mine", lambda images: (images.mean(axis=(1, 2, 3)) * 50).astype(np.int64) % 3)]
        images = LabelledImages(data.images[part], data.labels[part])
        return measure(Noise((8, 64), seed=5), targets, images, rows=np.arange(24)[part], options=RunOptions(shard=shard))

    whole, shards = measured(slice(None), None), [measured(slice(number, None, 3), (number + 1, 3)) for number in range(3)]
    merged, expected = without_time(merge(shards)), without_time(whole)
    for values in (merged, expected):  # each shard has sanity checks of its own
        values.pop("checks")
        for name in ("sent", "sanity"):
            values["targets"][0]["queries"].pop(name)
    assert merged == expected
    assert expected["targets"][0]["queries"]["counted"] == 72


@given(st.integers(0, 20), st.integers(1, 7), st.booleans())
@settings(max_examples=8)
def test_any_number_of_shards_does(n: int, count: int, is_attack: bool) -> None:
    whole = attack_outcome(n) if is_attack else outcome(n)
    assert without_time(merge(split(whole, count))) == without_time(whole)


def part_of(whole: ProbeOutcome, number: int, **changes: Any) -> ProbeOutcome:
    """The result of one target, as from its file."""
    target = whole.targets[number]
    values = {
        "targets": (target,),
        "gallery": tuple(entry for entry in whole.gallery if entry["target"] == target.name),
        "duration_s": whole.duration_s / len(whole.targets),
        "provenance": {**whole.provenance, "measured_at": f"2024-01-01T00:00:0{number}+00:00"},
    }
    return outcome_from_json(replace(whole, **{**values, **changes}).json())


@pytest.mark.parametrize("whole", [outcome(64), attack_outcome(50), TRANSFER], ids=["noise", "attack", "transfer"])
def test_results_of_different_targets_make_the_outcome_of_all(whole: ProbeOutcome) -> None:
    merged = merge([part_of(whole, 0), part_of(whole, 1)])
    assert without_time(merged) == without_time(whole)
    assert merged.provenance["measured_at"] == "2024-01-01T00:00:01+00:00"
    assert merged.provenance[TARGET_PROVENANCE]["alpha"] == {"measured_at": "2024-01-01T00:00:00+00:00"}
    third = replace(whole.targets[0], name="gamma", identity={"version": "9"})
    again = merge([merged, part_of(whole, 0, targets=(third,), gallery=())])
    assert [one.name for one in again.targets] == ["alpha", "beta", "gamma"]
    assert again.pair_tests() == replace(whole, targets=(*whole.targets, third)).pair_tests()
    assert outcome_from_json(again.json()).json() == again.json()


def test_the_provenance_of_a_merged_result_counts_as_those_of_its_parts() -> None:
    third = part_of(TRANSFER, 0, targets=(replace(TRANSFER.targets[0], name="gamma"),))
    values: tuple[dict[str, Any], ...] = ({"url": "a"}, {"url": "b", "n": 1}, {})
    parts = [replace(one, provenance=own) for one, own in zip((part_of(TRANSFER, 0), part_of(TRANSFER, 1), third), values, strict=True)]
    expected = {TARGET_PROVENANCE: {"alpha": {"url": "a"}, "beta": {"url": "b", "n": 1}, "gamma": {}}}
    assert merge(parts).provenance == expected
    assert merge([merge(parts[:2]), parts[2]]).provenance == expected


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"targets": TRANSFER.targets[:1]}, "alpha | a.json | b.json | --target"),
        ({"seed": 4}, "seed | 3 | 4"),
        ({"rows": TRANSFER.rows + 1}, "b.json | rows | 0 | 1 | --limit"),
        ({"labels": TRANSFER.labels + 1}, f"labels | image 0 | {TRANSFER.labels[0]} | {TRANSFER.labels[0] + 1} | --limit"),
        ({"image_digests": TRANSFER.image_digests + 1}, "image 0 | --limit"),
        ({"is_source_fooled": {}}, "examples | --examples"),
        ({"is_source_fooled": {"sigma 8": np.zeros(70, np.bool_)}}, "examples | --examples"),
        ({"shard": (1, 2)}, "no shard | --shard"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(changes: dict[str, Any], facts: str) -> None:
    with raises(InputError, f"a.json | {facts}" if "targets" not in changes else facts):
        merge([part_of(TRANSFER, 0), part_of(TRANSFER, 1, **changes)], ["a.json", "b.json"])


def test_results_of_other_numbers_of_images_are_refused() -> None:
    with raises(InputError, "a.json | numbers of images | 70 | 69 | --limit"):
        merge([part_of(outcome(70), 0), part_of(outcome(69), 1)], ["a.json", "b.json"])


def test_a_member_that_was_measured_without_its_ensemble_becomes_one() -> None:
    ensemble = replace(TRANSFER.targets[0], role="ensemble", members=("beta",))
    merged = merge([part_of(TRANSFER, 1), part_of(TRANSFER, 0, targets=(ensemble,))])
    assert [(one.name, one.role) for one in merged.targets] == [("beta", "member"), ("alpha", "ensemble")]


SHARDS = split(outcome(20), 3)


@pytest.mark.parametrize(
    ("shards", "facts"),
    [
        ([], "shards"),
        ([outcome()], "result 1 | --shard"),
        (SHARDS[:2], "2 of 3 | 3"),
        ([SHARDS[1]], "1, 3"),
        ([replace(SHARDS[1], shard=(2, 10**18))], f"1 of {10**18} | 1, 3, 4"),
        ([*SHARDS, SHARDS[0]], "1/3 | twice"),
        ([*SHARDS[:2], *split(outcome(20), 4)[2:]], "3 | 4"),
        ([SHARDS[0], SHARDS[1], replace(SHARDS[2], rows=SHARDS[1].rows[: len(SHARDS[2].rows)])], "image 3"),
    ],
)
def test_an_incomplete_set_of_shards_is_refused(shards: list[ProbeOutcome], facts: str) -> None:
    with raises(InputError, facts):
        merge(shards)


@pytest.mark.parametrize(
    "changes",
    [{"data": {"skipped": 3}}, {"data": {"skipped": {}}}, {"data": {"animations": "x"}}, {"gallery": ({"row": 3},)}],
)
def test_a_shard_with_other_forms_is_damaged(changes: dict[str, Any]) -> None:
    with raises(InputError, "shard 2/3 | damaged"):
        merge([SHARDS[0], replace(SHARDS[1], **changes), SHARDS[2]])


def test_files_are_named_in_errors() -> None:
    with raises(InputError, "a.json | c.json | 1/3"):
        merge([SHARDS[0], SHARDS[1], SHARDS[0]], ["a.json", "b.json", "c.json"])


TARGET = SHARDS[2].targets[0]


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"probe": "shuffle"}, "probe | noise | shuffle"),
        ({"input": "8bit"}, "input | float32 | 8bit"),
        ({"budget": 5}, "budget | none | 5"),
        ({"seed": 4}, "seed | 3 | 4"),
        ({"settings": {"seed": 3, "sigmas": (8.0,)}}, "settings.sigmas"),
        ({"settings": {"seed": 3, "sigmas": (8.0, 32.0), "kind": "uniform"}}, "settings.kind | none | uniform"),
        ({"data": {"name": "cifar10", "n_available": 100}}, "data.name | digits | cifar10"),
        ({"class_names": ("cat", "frog", "dog")}, "class_names"),
        ({"conditions": (Condition("sigma 8"),)}, "conditions: sigma 8, sigma 32 and sigma 8."),
        ({"targets": SHARDS[2].targets[:1]}, "targets | beta"),
        ({"targets": SHARDS[2].targets[::-1]}, "targets | beta"),
        ({"targets": (replace(TARGET, role="member"), SHARDS[2].targets[1])}, "role of alpha | member"),
        ({"targets": (replace(TARGET, identity={"version": "2", "digest": "alpha"}), SHARDS[2].targets[1])}, "version of alpha | 1 | 2"),
        ({"targets": (replace(TARGET, identity={"version": "1"}), SHARDS[2].targets[1])}, "digest of alpha | none"),
    ],
)
def test_shards_of_other_runs_are_refused(changes: dict[str, Any], facts: str) -> None:
    with raises(InputError, f"{facts} | shard 1/3 | shard 3/3"):
        merge([*SHARDS[:2], replace(SHARDS[2], **changes)])


def test_a_target_that_failed_in_one_shard_has_failed() -> None:
    alpha, beta = SHARDS[1].targets
    part = {name: values for name, values in beta.predicted.items() if name != "sigma 32"}
    failed = replace(SHARDS[1], targets=(alpha, replace(beta, failure="gone", predicted=part)))
    merged = merge([SHARDS[0], failed, SHARDS[2]])
    assert merged.targets[0].failure is None
    assert merged.targets[1].failure is not None
    assert_facts(merged.targets[1].failure, "2/3 | gone")
    assert list(merged.targets[1].predicted) == ["clean", "sigma 8"]
    attack = split(attack_outcome(), 2)
    without = tuple(replace(one, attack=None, failure="gone") for one in attack[0].targets)
    assert [one.attack for one in merge([replace(attack[0], targets=without), attack[1]]).targets] == [None, None]


def test_checks_have_the_worst_status_and_name_the_shard() -> None:
    def checks(*entries: tuple[str, str]) -> tuple[Check, ...]:
        return tuple(Check("clean", status, text) for status, text in entries)  # type: ignore[arg-type]

    shards = [
        replace(SHARDS[0], checks=checks(("PASS", "alpha: 70 %"), ("PASS", "beta: 60 %"))),
        replace(SHARDS[1], checks=checks(("WARN", "alpha: 9 %"), ("PASS", "beta: 60 %"))),
        replace(SHARDS[2], checks=checks(("PASS", "alpha: 71 %"), ("PASS", "beta: 60 %"), ("FAIL", "gamma: gone"))),
    ]
    alpha, beta, gamma = merge(shards).checks
    assert alpha.status == "WARN"
    assert_facts(alpha.text, "alpha: 9 % | 2/3 | 2 other")
    assert (beta.status, beta.text) == ("PASS", "beta: 60 %")
    assert (gamma.status, gamma.text) == ("FAIL", "gamma: gone")


def test_counts_of_files_are_added() -> None:
    shards = [
        replace(shard, data={"name": "folder", "skipped": {"hidden": 4, "damaged": number}, "animations": 2 * number})
        for number, shard in enumerate(SHARDS)
    ]
    assert merge(shards).data == {"name": "folder", "skipped": {"hidden": 4, "damaged": 3}, "animations": 6}
    with raises(InputError, "data.skipped | 1/3 | 2/3"):
        merge([shards[0], replace(shards[1], data={**shards[1].data, "skipped": {"hidden": 5, "damaged": 0}}), shards[2]])


def test_details_that_differ_are_kept_by_shard_or_computed_again() -> None:
    shards = [
        replace(shard, targets=tuple(replace(one, details={"x": 1, "y": number}) for one in shard.targets))
        for number, shard in enumerate(SHARDS)
    ]
    assert merge(shards).targets[1].details == {"x": 1, "y": {"1/3": 0, "2/3": 1, "3/3": 2}}

    def summary(data: Mapping[str, Any], rows: Any, labels: Any, predicted: Mapping[str, Any]) -> dict[str, Any]:
        return {"right": int((predicted["clean"] == labels).sum()), "from": data["name"], "n": len(rows)}

    counts = [int((one.predicted["clean"] == outcome(20).labels).sum()) for one in outcome(20).targets]
    expected = [{"right": count, "from": "digits", "n": 20} for count in counts]
    assert [one.details for one in merge(shards, summary=summary).targets] == expected


def test_the_gallery_keeps_the_first_examples_of_each_target() -> None:
    entries = tuple({"target": "alpha", "row": row, "condition": name} for row in range(9, 0, -1) for name in ("sigma 32", "sigma 8"))
    shards = [replace(SHARDS[0], gallery=entries[:8]), replace(SHARDS[1], gallery=entries[8:]), SHARDS[2]]
    shown = [(entry["row"], entry["condition"]) for entry in merge(shards).gallery]
    assert shown == [(row, name) for row in range(1, 4) for name in ("sigma 8", "sigma 32")]
    assert len(shown) == PER_TARGET
