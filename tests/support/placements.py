"""The paper's table of masked tensors, written out by hand: by architecture and block, module paths with shapes at the defaults (3x32x32).

Its counts: ResNet-18 10 (bottom) and 10 (top), ResNet-50 8, VGG-19 4, SENet-18 8, DenseNet-121 20, WRN-32-4 11.
"""

from __future__ import annotations

Masks = dict[str, tuple[int, int, int]]

_DENSE_LAYERS = {1: (6, 64, 32), 2: (12, 128, 16), 3: (24, 256, 8), 4: (16, 512, 4)}  # block: layers, channels of the first, size


def _basic(block: int, channels: int, size: int) -> Masks:
    """Both convolutions of both units, and from block 2 on the projection of the first."""
    masks = {f"block{block}.{unit}.defect{conv}": (channels, size, size) for unit in (0, 1) for conv in (1, 2)}
    return masks | ({f"block{block}.0.shortcut.defect": (channels, size, size)} if block > 1 else {})


def _bottlenecks(block: int, depth: int, channels: int, size: int) -> Masks:
    return {f"block{block}.{unit}.defect2": (channels, size, size) for unit in range(depth)}


def _pre_activation(block: int, channels: int, size: int) -> Masks:
    """What each convolution reads; the first one of a block reads what the block before it returns."""
    masks = {f"block{block}.{unit}.defect{conv}": (channels, size, size) for unit in (0, 1) for conv in (1, 2)}
    return masks | ({f"block{block}.0.defect1": (channels // 2, 2 * size, 2 * size)} if block > 1 else {})


def _dense(block: int) -> Masks:
    depth, channels, size = _DENSE_LAYERS[block]
    masks = {f"block{block}.{layer}.defect": (channels + 32 * layer, size, size) for layer in range(depth)}
    return masks | ({f"transition{block}.defect": (channels + 32 * depth, size, size)} if block < 4 else {})


def _group(block: int, depth: int, channels: int, size: int) -> Masks:
    return {f"block{block}.{conv}.defect": (channels, size, size) for conv in range(depth)}


def _wide(block: int, channels: int, size: int) -> Masks:
    return {f"block{block}.{unit}.defect{conv}": (channels, size, size) for unit in range(5) for conv in (1, 2)}


PLACEMENTS: dict[str, dict[int, Masks]] = {
    "resnet18": {
        0: {"stem.defect": (64, 32, 32)},
        1: _basic(1, 64, 32),
        2: _basic(2, 128, 16),
        3: _basic(3, 256, 8),
        4: _basic(4, 512, 4),
    },
    "resnet50": {
        0: {"stem.defect": (64, 32, 32)},
        1: _bottlenecks(1, 3, 64, 32),
        2: _bottlenecks(2, 4, 128, 16),
        3: _bottlenecks(3, 6, 256, 8),
        4: _bottlenecks(4, 3, 512, 4),
    },
    "densenet121": {0: {}, 1: _dense(1), 2: _dense(2), 3: _dense(3), 4: _dense(4)},
    "senet18": {
        0: {},
        1: _pre_activation(1, 64, 32),
        2: _pre_activation(2, 128, 16),
        3: _pre_activation(3, 256, 8),
        4: _pre_activation(4, 512, 4),
    },
    "vgg19": {
        0: _group(0, 2, 64, 32),
        1: _group(1, 2, 128, 16),
        2: _group(2, 4, 256, 8),
        3: _group(3, 4, 512, 4),
        4: _group(4, 4, 512, 2),
    },
    "wrn32_4": {0: {"stem.defect": (16, 32, 32)}, 1: _wide(1, 64, 32), 2: _wide(2, 128, 16), 3: _wide(3, 256, 8)},
}

# (architecture, blocks, count): the paper's settings, bottom for each architecture and top for ResNet-18.
SETTINGS = [
    ("resnet18", (0, 1, 2), 10),
    ("resnet18", (3, 4), 10),
    ("resnet50", (0, 1, 2), 8),
    ("vgg19", (0, 1), 4),
    ("senet18", (0, 1, 2), 8),
    ("densenet121", (0, 1, 2), 20),
    ("wrn32_4", (0, 1), 11),
]

# The narrowest width of each architecture.
NARROW = {"resnet18": 1, "resnet50": 1, "densenet121": 2, "senet18": 16, "vgg19": 1, "wrn32_4": 4}


def placed(arch: str, blocks: tuple[int, ...]) -> Masks:
    return {path: shape for block in blocks for path, shape in PLACEMENTS[arch][block].items()}
