"""ModelSpec: its fields, what it refuses, and its JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defensemble_training import Drop, ModelSpec, SpecError
from defensemble_training.models.spec import ARCHITECTURES
from tests.support.untrained import tiny_spec

WIDTH_MULTIPLES = {"densenet121": 2, "senet18": 16, "wrn32_4": 4}


@st.composite
def drops(draw: st.DrawFn, last_block: int) -> Drop:
    return Drop(
        draw(st.sampled_from(["spatial_dropout", "drop_block"])),
        draw(st.floats(0, 1, exclude_min=True)),
        tuple(draw(st.sets(st.integers(0, last_block)))),
        draw(st.integers(1, 9)),
    )


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    channels = draw(st.integers(1, 4))
    number = st.floats(-1e6, 1e6)
    arch = draw(st.sampled_from(ARCHITECTURES))
    last_block = 3 if arch == "wrn32_4" else 4
    return ModelSpec(
        arch=arch,
        keep=draw(st.floats(0, 1, exclude_min=True)),
        blocks=tuple(draw(st.sets(st.integers(0, last_block)))),
        pattern=draw(st.sampled_from(["neuron", "channel", "shared"])),
        sampling=draw(st.sampled_from(["bernoulli", "exact"])),
        mask_seed=draw(st.integers(0, 2**70)),
        width=draw(st.integers(1, 64)) * WIDTH_MULTIPLES.get(arch, 1),
        channel_multiplier=draw(st.integers(1, 4)),
        drop=draw(st.none() | drops(last_block)),
        stem=draw(st.sampled_from(["cifar", "imagenet"])) if arch in ("resnet18", "resnet50") else "cifar",
        mean=tuple(draw(st.lists(number, min_size=channels, max_size=channels))),
        std=tuple(draw(st.lists(st.floats(1e-6, 1e6), min_size=channels, max_size=channels))),
        num_classes=draw(st.integers(2, 1000)),
        input_shape=(channels, draw(st.integers(8, 256)), draw(st.integers(8, 256))),
    )


def test_fields_and_their_order() -> None:
    assert [field.name for field in dataclasses.fields(ModelSpec)] == [
        *("arch", "keep", "blocks", "pattern", "sampling", "mask_seed", "width", "channel_multiplier", "drop", "stem"),
        *("mean", "std", "num_classes", "input_shape"),
    ]


def test_defaults_are_the_papers_network_for_cifar10() -> None:
    spec = ModelSpec("resnet18", 0.1, (0, 1, 2))
    assert (spec.pattern, spec.width, spec.channel_multiplier, spec.drop, spec.stem) == ("neuron", 64, 1, None, "cifar")
    assert spec.mean == (0.4914, 0.4822, 0.4465)
    assert spec.std == (0.2023, 0.1994, 0.2010)
    assert (spec.num_classes, spec.input_shape) == (10, (3, 32, 32))


@given(specs())
def test_json_round_trip(spec: ModelSpec) -> None:
    back = ModelSpec.from_json(spec.to_json())
    assert back == spec
    assert type(back.drop) is type(spec.drop)
    assert hash(back) == hash(spec)
    assert list(json.loads(spec.to_json())) == [field.name for field in dataclasses.fields(ModelSpec)]


def test_json_may_leave_out_what_has_a_default() -> None:
    assert ModelSpec.from_json('{"arch": "resnet18", "keep": 1, "blocks": [2, 0]}') == ModelSpec("resnet18", 1.0, (0, 2))


def test_values_are_brought_to_one_form() -> None:
    spec = tiny_spec(blocks=[2, 0, 1], mean=[0], std=[np.float32(0.5)], width=np.int64(4))
    assert spec == tiny_spec(mean=(0.0,), std=(0.5,), width=4)
    assert type(spec.width) is int
    assert type(spec.mean[0]) is float


def test_specs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_spec().keep = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("arch", "resnet19", "arch must be one of resnet18, resnet50, densenet121, senet18, vgg19, wrn32_4; got 'resnet19'"),
        ("keep", 0.0, r"keep must be in \(0, 1\], got 0.0"),
        ("keep", 1.5, r"keep must be in \(0, 1\], got 1.5"),
        ("keep", -0.1, r"keep must be in \(0, 1\], got -0.1"),
        ("keep", float("nan"), r"keep must be in \(0, 1\], got nan"),
        ("keep", None, r"keep must be in \(0, 1\], got None"),
        ("keep", 10**400, r"keep must be in \(0, 1\], got 1000"),
        ("blocks", (0, 5), r"blocks must be different integers from 0 \(the stem\) to 4, such as \(0, 1, 2\); got \(0, 5\)"),
        ("blocks", (1, 1), "with one of them twice"),
        ("blocks", (-1,), r"got \(-1,\)"),
        ("blocks", (0.0,), r"got \(0.0,\)"),
        ("blocks", (True,), r"got \(True,\)"),
        ("blocks", ([0],), r"got \(\[0\],\)"),
        ("blocks", "012", "got '012'"),
        ("blocks", 0, "got 0"),
        ("pattern", "pixel", "pattern must be one of neuron, channel, shared; got 'pixel'"),
        ("pattern", ["neuron"], "pattern must be one of"),
        ("sampling", "poisson", "sampling must be one of bernoulli, exact; got 'poisson'"),
        ("mask_seed", -1, "mask_seed must be an integer of at least 0, got -1"),
        ("mask_seed", 0.5, "mask_seed must be an integer"),
        ("width", 0, "width must be an integer of at least 1, got 0"),
        ("width", True, "width must be an integer of at least 1, got True"),
        ("channel_multiplier", 0, "channel_multiplier must be an integer of at least 1, got 0"),
        ("channel_multiplier", 65, "channel_multiplier must be an integer of at most 64, got 65"),
        ("drop", "dropblock", r"drop must be None or a Drop, such as Drop\('drop_block', keep=0.9\), got 'dropblock'"),
        ("stem", "tiny", "stem must be one of cifar, imagenet; got 'tiny'"),
        ("mean", (0.5, 0.5), "mean must hold one number for each of the 1 channels of input_shape, got 2"),
        ("mean", (float("inf"),), "mean must hold finite numbers"),
        ("mean", (10**400,), "mean must hold finite numbers"),
        ("mean", 0.5, "mean must hold one number a channel, got 0.5"),
        ("std", (), "std must hold one number for each of the 1 channels"),
        ("std", (0.0,), r"std must be above 0 in every channel, got \(0.0,\)"),
        ("std", (float("nan"),), "std must hold finite numbers"),
        ("std", ("1",), "std must hold finite numbers"),
        ("num_classes", 1, "num_classes must be an integer of at least 2, got 1"),
        ("input_shape", (1, 8), r"input_shape must be \(C, H, W\), got \(1, 8\)"),
        ("input_shape", (0, 8, 8), "the channels in input_shape must be an integer of at least 1, got 0"),
        ("input_shape", (1, 7, 8), "the height in input_shape must be an integer of at least 8, got 7"),
        ("input_shape", (1, 8, 4), "the width in input_shape must be an integer of at least 8, got 4"),
    ],
)
def test_bad_values_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        tiny_spec(**{field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "wrn32_4", "blocks": (4,), "width": 4}, r"integers from 0 \(the stem\) to 3, such as \(0, 1, 2\); got \(4,\)"),
        ({"arch": "wrn32_4", "width": 6}, r"the width of wrn32_4 must be a multiple of 4 \(the stem has a quarter of the width\), got 6"),
        ({"arch": "senet18", "width": 8}, "the width of senet18 must be a multiple of 16 .*, got 8"),
        ({"arch": "densenet121", "width": 3}, "the width of densenet121 must be a multiple of 2 .*, got 3"),
        (
            {"arch": "vgg19", "stem": "imagenet"},
            "the stem of vgg19 must be one of cifar; got 'imagenet', which resnet18, resnet50 can have",
        ),
        (
            {"arch": "wrn32_4", "width": 4, "drop": Drop("drop_block")},
            r"the blocks of a drop in wrn32_4 must be different integers from 0 \(the stem\) to 3, such as .*; got \(3, 4\)",
        ),
    ],
)
def test_what_an_architecture_cannot_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        tiny_spec(**changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "dropout"}, "the kind of a drop must be one of spatial_dropout, drop_block; got 'dropout'"),
        ({"keep": 0}, r"keep must be in \(0, 1\], got 0"),
        ({"blocks": (5,)}, r"the blocks of a drop must be different integers from 0 \(the stem\) to 4, .*; got \(5,\)"),
        ({"block_size": 0}, "the block_size of a drop must be an integer of at least 1, got 0"),
    ],
)
def test_bad_drops_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Drop(**{"kind": "drop_block", **values})


def test_drops_have_the_papers_defaults_and_one_form() -> None:
    assert Drop("drop_block") == Drop("drop_block", 0.9, (3, 4), 3)
    drop = Drop("drop_block", 1, [4, 3])  # type: ignore[arg-type]
    assert (drop.keep, type(drop.keep), drop.blocks) == (1.0, float, (3, 4))


def with_json(**changes: Any) -> str:
    return json.dumps({**json.loads(tiny_spec().to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (with_json(p=0.3), "unknown keys in a spec: p; the keys are arch, keep, blocks, pattern"),
        (with_json(keep=2), r"keep must be in \(0, 1\], got 2"),
        (with_json(drop="drop_block"), "drop must be None or a Drop"),
        (with_json(drop={"keep": 0.9}), "the drop of a spec must have kind; got the keys keep"),
        (with_json(drop={"kind": "drop_block", "p": 0.1}), "unknown keys in the drop of a spec: p; the keys are kind, keep, blocks"),
        ("{}", "a spec must have arch, keep, blocks; got the keys none"),
        ('{"arch": "resnet18", "keep": 0.3}', "a spec must have blocks; got the keys arch, keep"),
        ("[]", r"a spec must be a JSON object, got '\[\]'"),
        ("{keep: 0.3}", "a spec must be a JSON object, got '{keep"),
        ("", "a spec must be a JSON object, got ''"),
        ("[" * 100_000, "a spec must be a JSON object"),
    ],
)
def test_bad_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ModelSpec.from_json(text)
