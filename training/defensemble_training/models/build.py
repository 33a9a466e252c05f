"""From a spec to a network: the architectures that exist."""

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
    """Build the network of a spec, with its masks and with weights from torch's global random generator.

    The module takes images float32 (N, C, H, W) in [0, 1] to logits (N, num_classes); normalisation is its first layer. Every masked
    tensor has exactly one `Defect`, whose mask depends on the spec and on the module's path alone; `keep=1.0` builds none. Under
    `torch.device("meta")` every tensor has its shape and no values, masks too.

    Raises:
        SpecError: the masks that were drawn leave no path for the image, so that the network would be constant.
    """
    return _NETWORKS[spec.arch](spec)
