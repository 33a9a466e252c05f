"""The masks of every architecture compared with the paper's table: tensors, sizes, and adjacent layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional

from defensemble_training import Drop, ModelSpec, SpecError, build, defect_masks
from defensemble_training.models.defect import Defect
from defensemble_training.models.drop import DefectThenDrop, DropBlock, SpatialDropout
from defensemble_training.models.spec import ARCHITECTURES
from tests.support.facts import raises
from tests.support.placements import NARROW, PLACEMENTS, SETTINGS, placed
from tests.support.untrained import tiny_spec

PARAMETERS = {
    "resnet18": 11_173_962,
    "resnet50": 23_520_842,
    "densenet121": 6_956_298,
    "senet18": 11_260_354,
    "vgg19": 20_040_522,
    "wrn32_4": 7_400_026,
}
SHAPES = [(3, 32, 32), (3, 64, 64), (1, 28, 28), (1, 16, 16), (1, 8, 8), (1, 9, 12)]


def outline(spec: ModelSpec) -> nn.Module:
    """Build a network whose tensors have shapes but no values."""
    with torch.device("meta"):
        return build(spec)


def narrow(arch: str, **changes: Any) -> ModelSpec:
    return tiny_spec(**{"arch": arch, "width": NARROW[arch], "sampling": "exact", **changes})


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {path: tuple(layer.mask.shape) for path, layer in module.named_modules() if isinstance(layer, Defect)}


def last_block(arch: str) -> int:
    return max(PLACEMENTS[arch])


def test_table_has_every_architecture() -> None:
    assert set(PLACEMENTS) == set(PARAMETERS) == set(NARROW) == set(ARCHITECTURES)


@pytest.mark.parametrize(("arch", "blocks", "count"), SETTINGS)
def test_masks_of_the_papers_settings(arch: str, blocks: tuple[int, ...], count: int) -> None:
    shapes = shapes_of(outline(ModelSpec(arch, 0.1, blocks)))
    assert shapes == placed(arch, blocks)
    assert len(shapes) == count


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_masks_of_all_blocks(arch: str) -> None:
    blocks = tuple(PLACEMENTS[arch])
    assert shapes_of(outline(ModelSpec(arch, 0.1, blocks))) == placed(arch, blocks)


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != "densenet121"])
@settings(max_examples=8)
@given(data=st.data())
def test_masks_of_any_set_of_blocks(arch: str, data: st.DataObject) -> None:
    blocks = tuple(sorted(data.draw(st.sets(st.integers(0, last_block(arch))))))
    factor = 64 // NARROW[arch]
    expected = {path: (channels // factor, height, width) for path, (channels, height, width) in placed(arch, blocks).items()}
    assert shapes_of(outline(narrow(arch, blocks=blocks, input_shape=(1, 32, 32)))) == expected


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("sampling", ["bernoulli", "exact"])
@pytest.mark.parametrize(("pattern", "axes"), [("neuron", (0, 1, 2)), ("channel", (0,)), ("shared", (1, 2))])
def test_patterns_and_samplings(arch: str, sampling: str, pattern: str, axes: tuple[int, ...]) -> None:
    module = build(narrow(arch, keep=0.7, pattern=pattern, sampling=sampling, width=16, blocks=(0, 1), input_shape=(1, 12, 32)))
    masks = {name.removesuffix(".mask"): mask for name, mask in defect_masks(module).items()}
    sizes = {path: (channels // 4, height * 12 // 32, width) for path, (channels, height, width) in placed(arch, (0, 1)).items()}
    assert set(masks) == set(sizes)
    for path, mask in masks.items():
        assert mask.shape == tuple(extent if axis in axes else 1 for axis, extent in enumerate(sizes[path]))
        if sampling == "exact":
            assert mask.sum() == max(1, int(0.7 * mask.size + 0.5))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_masks_at_64x64(arch: str) -> None:
    blocks = tuple(PLACEMENTS[arch])
    spec = narrow(arch, keep=0.1, blocks=blocks, input_shape=(1, 64, 64))
    factor = 64 // NARROW[arch]
    sizes = {path: (channels // factor, 2 * height, 2 * width) for path, (channels, height, width) in placed(arch, blocks).items()}
    assert shapes_of(outline(spec)) == sizes


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_masks_with_the_stem_for_imagenet(arch: str) -> None:
    blocks = tuple(PLACEMENTS[arch])
    spec = ModelSpec(arch, 0.1, blocks, width=2, stem="imagenet", input_shape=(3, 224, 224), num_classes=1000)
    # The stem at 112x112, then 56x56 in place of 32x32 for CIFAR.
    sizes = {path: (channels // 32, height * 7 // 4, width * 7 // 4) for path, (channels, height, width) in placed(arch, blocks).items()}
    module = build(spec).eval()
    assert shapes_of(module) == sizes | {"stem.defect": (2, 112, 112)}
    tensors = record_tensors(module, torch.rand(1, 3, 224, 224))
    assert module.get_submodule("stem.conv").kernel_size == (7, 7)
    (pooled,), _ = tensors["pool"]
    assert torch.equal(pooled, tensors["stem.defect"][1].relu())
    assert tensors["block1.0"][0][0].shape == (1, 2, 56, 56)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameters_at_the_defaults(arch: str) -> None:
    module = outline(ModelSpec(arch, 0.1, (0, 1, 2)))
    assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_images_of_many_shapes(arch: str) -> None:
    for shape in SHAPES:
        module = build(narrow(arch, input_shape=shape, mean=(0.5,) * shape[0], std=(0.25,) * shape[0])).eval()
        logits = module(torch.rand(2, *shape))
        assert logits.shape == (2, 3)
        assert logits.isfinite().all()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_keep_1_is_the_standard_network(arch: str) -> None:
    blocks = tuple(PLACEMENTS[arch])
    module, masked = outline(narrow(arch, keep=1.0, blocks=blocks)), outline(narrow(arch, keep=0.5, blocks=blocks))
    assert shapes_of(module) == {}
    assert list(module.state_dict()) == [name for name in masked.state_dict() if not name.endswith(".mask")]


def record_tensors(module: nn.Module, images: torch.Tensor) -> dict[str, tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """Return the inputs and the output of each layer."""
    tensors: dict[str, tuple[tuple[torch.Tensor, ...], torch.Tensor]] = {}
    handles = [
        layer.register_forward_hook(lambda _layer, inputs, output, path=path: tensors.__setitem__(path, (inputs, output)))
        for path, layer in module.named_modules()
    ]
    with torch.no_grad():
        module(images)
    for handle in handles:
        handle.remove()
    return tensors


# For each suffix of a mask's path: the BatchNorm before the mask, and the layer after its ReLU (None for a sum).
_STEM: dict[str, tuple[str, str | None]] = {"stem.defect": ("stem.bn", "block1.0")}
_BASIC: dict[str, tuple[str, str | None]] = {
    "defect1": ("bn1", "conv2"),
    "shortcut.defect": ("shortcut.bn", None),
    "defect2": ("bn2", None),
}
NEIGHBOURS: dict[str, dict[str, tuple[str, str | None]]] = {
    "resnet18": _STEM | _BASIC,
    "resnet50": _STEM | {"defect2": ("bn2", "conv3")},
    "densenet121": {"defect": ("bn1", "conv1")},
    "senet18": {"defect1": ("bn1", "conv1"), "defect2": ("bn2", "conv2")},
    "vgg19": {"defect": ("bn", None)},
    "wrn32_4": _STEM | _BASIC,
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_masks_are_between_batchnorm_and_relu(arch: str) -> None:
    torch.manual_seed(1)
    module = build(narrow(arch, keep=0.5, blocks=tuple(PLACEMENTS[arch]), width=16, input_shape=(1, 16, 16)))
    module(torch.rand(8, 1, 16, 16))  # so that BatchNorm's statistics differ from their initial values
    tensors = record_tensors(module.eval(), torch.rand(4, 1, 16, 16))
    assert shapes_of(module)
    for path in shapes_of(module):
        end, (norm, reader) = next((end, layers) for end, layers in NEIGHBOURS[arch].items() if path.endswith(end))
        unit = path.removesuffix(end)
        norm = "bn" if path.startswith("transition") else norm
        reader = "conv" if path.startswith("transition") else reader
        mask = module.get_submodule(path).get_buffer("mask")
        (before,), after = tensors[path]
        assert torch.equal(before, tensors[unit + norm][1])
        assert torch.equal(after, torch.where(mask, before, torch.zeros(())))
        assert after.min() < 0  # the mask is before the ReLU
        if reader is not None:
            assert torch.equal(tensors[unit + reader][0][0], after.relu())


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "wrn32_4", "senet18", "densenet121"])
def test_sums_shortcuts_and_concatenations_are_not_masked(arch: str) -> None:
    torch.manual_seed(1)
    module = build(narrow(arch, keep=0.01, blocks=(1, 2, 3), width=16, input_shape=(1, 16, 16))).eval()
    tensors = record_tensors(module, torch.rand(4, 1, 16, 16))
    (inputs,), result = tensors["block1.1"]
    if arch == "densenet121":
        assert torch.equal(result[:, : inputs.shape[1]], inputs)
    elif arch == "senet18":
        assert torch.equal(result, tensors["block1.1.scale"][1] + inputs)
    else:
        branch = tensors["block1.1.bn3" if arch == "resnet50" else "block1.1.defect2"][1]
        assert torch.equal(result, (branch + inputs).relu())
    assert (inputs != 0).float().mean() > 0.2  # the masks keep 0.01
    assert (result != 0).float().mean() > 0.2  # the masks keep 0.01


def test_only_resnet18_has_masked_projections() -> None:
    for arch in ("resnet50", "wrn32_4"):
        module = outline(narrow(arch, blocks=tuple(PLACEMENTS[arch])))
        assert isinstance(module.get_submodule("block2.0.shortcut.conv"), nn.Conv2d)
        assert isinstance(module.get_submodule("block2.0.shortcut.defect"), nn.Identity)
    assert isinstance(outline(narrow("resnet18", blocks=(2,))).get_submodule("block2.0.shortcut.defect"), Defect)


def test_vgg_pools_masked_activations() -> None:
    module = build(narrow("vgg19", blocks=(0, 1), input_shape=(1, 16, 16))).eval()
    tensors = record_tensors(module, torch.rand(2, 1, 16, 16))
    assert torch.equal(tensors["block0.1.conv"][0][0], tensors["block0.0.defect"][1].relu())
    assert torch.equal(tensors["block1"][0][0], functional.max_pool2d(tensors["block0.1.defect"][1].relu(), 2))


@pytest.mark.parametrize(
    ("arch", "block", "path"),
    [
        ("resnet50", 0, "stem"),
        ("wrn32_4", 0, "stem"),
        ("densenet121", 2, "transition2"),
        ("senet18", 2, "block2.0"),
        ("vgg19", 3, "block3.0"),
    ],
)
def test_constant_networks_are_rejected(arch: str, block: int, path: str) -> None:
    with raises(SpecError, f"{path} | keep | constant"):
        build(narrow(arch, keep=1e-9, blocks=(block,), sampling="bernoulli"))


@pytest.mark.parametrize(("arch", "blocks"), [("resnet50", (1, 2, 3, 4)), ("wrn32_4", (1, 2, 3)), ("senet18", (1,)), ("densenet121", (4,))])
def test_empty_masks_parallel_to_an_open_path_are_accepted(arch: str, blocks: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = build(narrow(arch, keep=1e-9, blocks=blocks, sampling="bernoulli")).eval()
    logits = module(torch.rand(2, 1, 8, 8))
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_multiplier_widens_only_the_defective_blocks(arch: str) -> None:
    spec = narrow(arch, blocks=(0, 1), input_shape=(1, 16, 16))
    once, twice = outline(spec), build(tiny_spec(**{**vars(spec), "channel_multiplier": 2})).eval()
    assert twice(torch.rand(2, 1, 16, 16)).shape == (2, 3)
    for path, layer in once.named_modules():
        if not isinstance(layer, nn.Conv2d) or "scale" in path:
            continue
        wide = twice.get_submodule(path)
        assert isinstance(wide, nn.Conv2d)
        if path.startswith(("stem", "block0", "block1")):
            assert (path, wide.out_channels) == (path, 2 * layer.out_channels)
        elif arch != "densenet121":
            assert (path, wide.out_channels) == (path, layer.out_channels)
    assert [shape[0] for shape in shapes_of(twice).values()] == [2 * shape[0] for shape in shapes_of(once).values()]


def test_multiplier_in_densenet_multiplies_the_growth() -> None:
    module = outline(ModelSpec("densenet121", 0.5, (1,), channel_multiplier=2))
    assert [shape[0] for shape in shapes_of(module).values()] == [64 + 64 * layer for layer in range(7)]
    assert module.get_submodule("transition1.conv").out_channels == 224
    assert module.get_submodule("block2.0.conv2").out_channels == 32


def test_widened_block_has_a_masked_projection_and_the_next_block_keeps_its_stride() -> None:
    module = outline(ModelSpec("resnet18", 0.5, (1,), channel_multiplier=2))
    masks = shapes_of(module)
    assert masks.pop("block1.0.shortcut.defect") == (128, 32, 32)
    assert masks == {path: (128, 32, 32) for path in PLACEMENTS["resnet18"][1]}
    assert module.get_submodule("block2.0.conv1").stride == (2, 2)  # 128 channels in and out, at half the size


def test_multiplier_works_without_masks() -> None:
    wide = outline(ModelSpec("resnet18", 1.0, (0, 1, 2), channel_multiplier=2))
    assert wide.get_submodule("stem.conv").out_channels == 128
    assert shapes_of(wide) == {}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["spatial_dropout", "drop_block"])
def test_drops_are_at_the_positions_of_masks(arch: str, kind: str) -> None:
    blocks = (2, 3)
    drop = Drop(kind, keep=0.8, blocks=blocks, block_size=2)
    module = outline(narrow(arch, blocks=(0, 1), drop=drop))
    expected = SpatialDropout if kind == "spatial_dropout" else DropBlock
    assert {path for path, layer in module.named_modules() if isinstance(layer, expected)} == set(placed(arch, blocks))
    assert set(shapes_of(module)) == set(placed(arch, (0, 1)))
    assert list(module.state_dict()) == list(outline(narrow(arch, blocks=(0, 1))).state_dict())
    for layer in module.modules():
        if isinstance(layer, DropBlock):
            assert (layer.keep, layer.block_size) == (0.8, 2)
        if isinstance(layer, SpatialDropout):
            assert layer.p == pytest.approx(0.2)


def test_mask_and_drop_at_one_position() -> None:
    mask_only, both = narrow("resnet18", blocks=(3,)), narrow("resnet18", blocks=(3,), drop=Drop("drop_block"))
    module = build(both)
    masks = defect_masks(module)
    assert {name: mask.tobytes() for name, mask in masks.items()} == {
        name: mask.tobytes() for name, mask in defect_masks(build(mask_only)).items()
    }
    assert set(module.state_dict()) == set(build(mask_only).state_dict())
    assert all(isinstance(module.get_submodule(path), DefectThenDrop) for path in PLACEMENTS["resnet18"][3])
    assert sum(isinstance(layer, DropBlock) for layer in module.modules()) == 10


def test_drop_with_keep_1_is_omitted() -> None:
    module = outline(narrow("resnet18", drop=Drop("drop_block", keep=1.0)))
    assert not any(isinstance(layer, DropBlock) for layer in module.modules())
