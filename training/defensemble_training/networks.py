"""From a spec to a network: the architectures that exist."""

from torch import nn

from .resnet import ResNet18
from .spec import ModelSpec

_NETWORKS = {"resnet18": ResNet18}


def build(spec: ModelSpec) -> nn.Module:
    """Build the network of a spec, with its masks and with weights from torch's global random generator.

    The module takes images float32 (N, C, H, W) in [0, 1] to logits (N, num_classes); normalisation is its first layer. Every masked
    tensor has exactly one `Defect`, whose mask depends on the spec and on the module's path alone; `keep=1.0` builds none. Under
    `torch.device("meta")` every tensor has its shape and no values, masks too.

    Raises:
        SpecError: the masks that were drawn leave no path for the image, so that the network would be constant.
    """
    return _NETWORKS[spec.arch](spec)
