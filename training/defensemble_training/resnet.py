"""ResNet-18 in the CIFAR style: a 3x3 stem without pooling, four stages of two residual units, global average pooling.

Masks sit after BatchNorm and before the residual sum and the ReLU. A sum and an identity shortcut are never masked, a projection
shortcut is.
Sources: arXiv 1512.03385 for the network, arXiv 1911.08432 for the masks.
"""

import torch
from torch import nn
from torch.nn import functional

from ._errors import SpecError
from .layers import ConvUnit, Normalize, defect_at, keeps_nothing
from .spec import ModelSpec

Shape = tuple[int, int, int]


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions beside a shortcut: an identity where the shape stays, else a 1x1 projection."""

    def __init__(self, spec: ModelSpec, block: int, path: str, shape_in: Shape, shape_out: Shape) -> None:
        super().__init__()
        stride = 1 if shape_in == shape_out else 2
        channels_in, channels_out = shape_in[0], shape_out[0]
        self.conv1 = _conv3x3(channels_in, channels_out, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.defect1 = defect_at(spec, block, f"{path}.defect1", shape_out)
        self.conv2 = _conv3x3(channels_out, channels_out, 1)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.defect2 = defect_at(spec, block, f"{path}.defect2", shape_out)
        self.shortcut: nn.Module = nn.Identity()
        if shape_in != shape_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = ConvUnit(projection, defect_at(spec, block, f"{path}.shortcut.defect", shape_out))
            if keeps_nothing(self.shortcut.defect) and (keeps_nothing(self.defect1) or keeps_nothing(self.defect2)):
                raise _constant_network(spec, path, shape_out)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Take (N, C, H, W) to the shape of the unit's stage."""
        branch = functional.relu(self.defect1(self.bn1(self.conv1(activations))))
        branch = self.defect2(self.bn2(self.conv2(branch)))
        return functional.relu(branch + self.shortcut(activations))


class ResNet18(nn.Module):
    """ResNet-18: images float32 (N, C, H, W) in [0, 1] to logits (N, num_classes).

    Block 0 is the stem, blocks 1 to 4 are the stages. 11.17 million parameters at width 64 with 3 channels and 10 classes.

    Raises:
        SpecError: the masks that were drawn leave no path for the image, so that the network would be constant.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        channels, height, width = spec.input_shape
        shape = (spec.width, height, width)
        self.normalize = Normalize(spec)
        self.stem = ConvUnit(_conv3x3(channels, spec.width, 1), defect_at(spec, 0, "stem.defect", shape))
        if keeps_nothing(self.stem.defect):
            raise _constant_network(spec, "stem", shape)
        self.block1, shape = _stage(spec, 1, shape, shape)
        self.block2, shape = _stage(spec, 2, shape, _halved(shape))
        self.block3, shape = _stage(spec, 3, shape, _halved(shape))
        self.block4, shape = _stage(spec, 4, shape, _halved(shape))
        self.classifier = nn.Linear(shape[0], spec.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        features = functional.relu(self.stem(self.normalize(images)))
        features = self.block4(self.block3(self.block2(self.block1(features))))
        return self.classifier(features.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def _stage(spec: ModelSpec, block: int, shape_in: Shape, shape_out: Shape) -> tuple[nn.Sequential, Shape]:
    first = ResidualUnit(spec, block, f"block{block}.0", shape_in, shape_out)
    second = ResidualUnit(spec, block, f"block{block}.1", shape_out, shape_out)
    return nn.Sequential(first, second), shape_out


def _halved(shape: Shape) -> Shape:
    return 2 * shape[0], (shape[1] + 1) // 2, (shape[2] + 1) // 2


def _conv3x3(channels_in: int, channels_out: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


def _constant_network(spec: ModelSpec, path: str, shape: Shape) -> SpecError:
    return SpecError(
        f"with keep={spec.keep}, pattern={spec.pattern!r}, sampling={spec.sampling!r} and mask_seed={spec.mask_seed} the masks at {path} "
        f"({'x'.join(str(extent) for extent in shape)}) keep nothing, and the network would be constant; "
        "take a larger keep, another mask_seed, or sampling='exact', which keeps at least one position a mask"
    )
