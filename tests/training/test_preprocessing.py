"""Preprocessing in the training records of new and older checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from defensemble_images import Preprocessing
from defensemble_training import SpecError, TrainingRecord, build, load_checkpoint, read_metadata, save_checkpoint
from tests.support.checkout import ROOT
from tests.support.facts import raises
from tests.support.untrained import record_of, tiny_spec

ZOO = sorted((ROOT / "zoo/cifar10").glob("*.safetensors"))


@pytest.mark.parametrize("rule", [None, Preprocessing("crop").to_values(), Preprocessing("squash").to_values()])
def test_checkpoint_keeps_the_preprocessing(tmp_path: Path, rule: dict[str, object] | None) -> None:
    path, spec = tmp_path / "network.safetensors", tiny_spec()
    save_checkpoint(path, build(spec), spec, record_of(spec, preprocessing=rule))
    assert load_checkpoint(path)[2].preprocessing == rule
    assert read_metadata(path).record.preprocessing == rule


def test_older_record_has_no_preprocessing() -> None:
    record = record_of(tiny_spec())
    values = record.to_values()
    assert values.pop("preprocessing", "lacking") is None
    assert TrainingRecord.from_values(values) == record
    with pytest.raises(SpecError, match="preprocess"):
        TrainingRecord.from_values({**values, "preprocess": None})


@pytest.mark.parametrize("rule", [{}, [], "crop", {"resize": "crop"}, {**Preprocessing().to_values(), "version": 99}])
def test_unknown_rule_is_rejected(rule: object) -> None:
    values = {**record_of(tiny_spec()).to_values(), "preprocessing": rule}
    with raises(SpecError, f"training record | {rule}"):
        TrainingRecord.from_values(values)


def test_zoo_checkpoints_have_preprocessing() -> None:
    assert len(ZOO) == 12
    assert {path.stem: read_metadata(path).record.preprocessing for path in ZOO} == {
        path.stem: Preprocessing("crop").to_values() for path in ZOO
    }
