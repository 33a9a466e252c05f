"""ModelSpec: its fields, what it refuses, and its JSON."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defensemble_training import ModelSpec, SpecError

from .untrained import tiny_spec


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    channels = draw(st.integers(1, 4))
    number = st.floats(-1e6, 1e6)
    return ModelSpec(
        arch="resnet18",
        keep=draw(st.floats(0, 1, exclude_min=True)),
        blocks=tuple(draw(st.sets(st.integers(0, 4)))),
        pattern=draw(st.sampled_from(["neuron", "channel", "shared"])),
        sampling=draw(st.sampled_from(["bernoulli", "exact"])),
        mask_seed=draw(st.integers(0, 2**70)),
        width=draw(st.integers(1, 512)),
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
        ("arch", "resnet19", "arch must be one of resnet18; got 'resnet19'"),
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
        ("channel_multiplier", 2, r"channel_multiplier must be 1 \(no other value is built yet\), got 2"),
        ("drop", "dropblock", "drop must be None .* got 'dropblock'"),
        ("stem", "imagenet", "stem must be one of cifar; got 'imagenet'"),
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


def with_json(**changes: Any) -> str:
    return json.dumps({**json.loads(tiny_spec().to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (with_json(p=0.3), "unknown keys in a spec: p; the keys are arch, keep, blocks, pattern"),
        (with_json(keep=2), r"keep must be in \(0, 1\], got 2"),
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
