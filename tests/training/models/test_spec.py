"""`ModelSpec`: fields, validation, JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from defensemble_training import Drop, ModelSpec, SpecError
from defensemble_training.models.spec import ARCHITECTURES
from tests.support.facts import raises
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


def test_json_may_omit_fields_with_a_default() -> None:
    assert ModelSpec.from_json('{"arch": "resnet18", "keep": 1, "blocks": [2, 0]}') == ModelSpec("resnet18", 1.0, (0, 2))


def test_values_are_converted_to_standard_types() -> None:
    spec = tiny_spec(blocks=[2, 0, 1], mean=[0], std=[np.float32(0.5)], width=np.int64(4))
    assert spec == tiny_spec(mean=(0.0,), std=(0.5,), width=4)
    assert type(spec.width) is int
    assert type(spec.mean[0]) is float


def test_specs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_spec().keep = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "facts"),
    [
        ("arch", "resnet19", "arch | resnet18, resnet50, densenet121, senet18, vgg19, wrn32_4 | 'resnet19'"),
        ("keep", 0.0, "keep | (0, 1] | 0.0"),
        ("keep", 1.5, "keep | (0, 1] | 1.5"),
        ("keep", -0.1, "keep | (0, 1] | -0.1"),
        ("keep", float("nan"), "keep | (0, 1] | nan"),
        ("keep", None, "keep | (0, 1] | None"),
        ("keep", 10**400, "keep | (0, 1]"),
        ("blocks", (0, 5), "blocks | 4 | (0, 5)"),
        ("blocks", (1, 1), "blocks | duplicates"),
        ("blocks", (-1,), "blocks | (-1,)"),
        ("blocks", (0.0,), "blocks | (0.0,)"),
        ("blocks", (True,), "blocks | (True,)"),
        ("blocks", ([0],), "blocks | ([0],)"),
        ("blocks", "012", "blocks | '012'"),
        ("blocks", 0, "blocks | got 0"),
        ("pattern", "pixel", "pattern | neuron, channel, shared | 'pixel'"),
        ("pattern", ["neuron"], "pattern | neuron, channel, shared"),
        ("sampling", "poisson", "sampling | bernoulli, exact | 'poisson'"),
        ("mask_seed", -1, "mask_seed | 0 | -1"),
        ("mask_seed", 0.5, "mask_seed | integer | 0.5"),
        ("width", 0, "width | at least 1 | 0"),
        ("width", True, "width | at least 1 | True"),
        ("channel_multiplier", 0, "channel_multiplier | at least 1 | 0"),
        ("channel_multiplier", 65, "channel_multiplier | 64 | 65"),
        ("drop", "dropblock", "drop | Drop( | 'dropblock'"),
        ("stem", "tiny", "stem | cifar, imagenet | 'tiny'"),
        ("mean", (0.5, 0.5), "mean | input_shape | 1 | 2"),
        ("mean", (float("inf"),), "mean | finite"),
        ("mean", (10**400,), "mean | finite"),
        ("mean", 0.5, "mean | channel | 0.5"),
        ("std", (), "std | input_shape | 1"),
        ("std", (0.0,), "std | above 0 | (0.0,)"),
        ("std", (float("nan"),), "std | finite"),
        ("std", ("1",), "std | finite"),
        ("num_classes", 1, "num_classes | 2 | 1"),
        ("input_shape", (1, 8), "input_shape | (C, H, W) | (1, 8)"),
        ("input_shape", (0, 8, 8), "channels | input_shape | 1 | 0"),
        ("input_shape", (1, 7, 8), "height | input_shape | 8 | 7"),
        ("input_shape", (1, 8, 4), "width | input_shape | 8 | 4"),
    ],
)
def test_invalid_values_are_rejected(field: str, value: object, facts: str) -> None:
    with raises(SpecError, facts):
        tiny_spec(**{field: value})


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"arch": "wrn32_4", "blocks": (4,), "width": 4}, "3 | (4,)"),
        ({"arch": "wrn32_4", "width": 6}, "width | wrn32_4 | multiple of 4 | 6"),
        ({"arch": "senet18", "width": 8}, "width | senet18 | multiple of 16 | 8"),
        ({"arch": "densenet121", "width": 3}, "width | densenet121 | multiple of 2 | 3"),
        (
            {"arch": "vgg19", "stem": "imagenet"},
            "stem | vgg19 | cifar | 'imagenet' | resnet18, resnet50",
        ),
        (
            {"arch": "wrn32_4", "width": 4, "drop": Drop("drop_block")},
            "drop | wrn32_4 | 3 | (3, 4)",
        ),
    ],
)
def test_values_an_architecture_does_not_support_are_rejected(changes: dict[str, Any], facts: str) -> None:
    with raises(SpecError, facts):
        tiny_spec(**changes)


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"kind": "dropout"}, "kind | drop | spatial_dropout, drop_block | 'dropout'"),
        ({"keep": 0}, "keep | (0, 1] | got 0"),
        ({"blocks": (5,)}, "blocks | drop | 4 | (5,)"),
        ({"block_size": 0}, "block_size | drop | at least 1 | 0"),
    ],
)
def test_invalid_drops_are_rejected(values: dict[str, Any], facts: str) -> None:
    with raises(SpecError, facts):
        Drop(**{"kind": "drop_block", **values})


def test_drop_defaults_equal_the_paper() -> None:
    assert Drop("drop_block") == Drop("drop_block", 0.9, (3, 4), 3)
    drop = Drop("drop_block", 1, [4, 3])  # type: ignore[arg-type]
    assert (drop.keep, type(drop.keep), drop.blocks) == (1.0, float, (3, 4))


def with_json(**changes: Any) -> str:
    return json.dumps({**json.loads(tiny_spec().to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (with_json(p=0.3), "p | arch, keep, blocks, pattern"),
        (with_json(keep=2), "keep | (0, 1] | got 2"),
        (with_json(drop="drop_block"), "drop | Drop"),
        (with_json(drop={"keep": 0.9}), "drop | kind | keep"),
        (with_json(drop={"kind": "drop_block", "p": 0.1}), "drop | p | kind, keep, blocks"),
        ("{}", "arch, keep, blocks"),
        ('{"arch": "resnet18", "keep": 0.3}', "blocks | arch, keep"),
        ("[]", "JSON object | '[]'"),
        ("{keep: 0.3}", "JSON object | '{keep"),
        ("", "JSON object | ''"),
        ("[" * 100_000, "JSON object"),
    ],
)
def test_invalid_json_is_rejected(text: str, facts: str) -> None:
    with raises(SpecError, facts):
        ModelSpec.from_json(text)
