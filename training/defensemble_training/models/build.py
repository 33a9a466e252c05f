"""Build a network from its spec."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .densenet121 import DenseNet121
from .resnet18 import ResNet18
from .resnet50 import ResNet50
from .senet18 import SENet18
from .spec import ModelSpec
from .vgg19 import VGG19
from .wrn32_4 import WideResNet32x4

_NETWORKS: dict[str, Callable[[ModelSpec], nn.Module]] = {
    "resnet18": ResNet18,
    "resnet50": ResNet50,
    "densenet121": DenseNet121,
    "senet18": SENet18,
    "vgg19": VGG19,
    "wrn32_4": WideResNet32x4,
}


def build(spec: ModelSpec) -> nn.Module:
    """Build a network with its masks, and with weights from torch's global random generator.

    The module maps images float32 (N, C, H, W) in [0, 1] to logits (N, num_classes); its first layer normalises the images. Each masked
    tensor has exactly one `Defect`, whose mask depends only on the spec and the module's path; `keep=1.0` builds none. Under
    `torch.device("meta")` all tensors, masks included, have shapes but no values.

    Raises:
        SpecError: The masks block every path from the image, so the network would be constant.

    Example:
        >>> module = build(ModelSpec("resnet18", keep=0.5, blocks=(0, 1, 2)))
        >>> logits = module(torch.rand(1, 3, 32, 32))
    """
    return _NETWORKS[spec.arch](spec)
