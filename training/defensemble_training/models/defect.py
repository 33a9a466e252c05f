"""The defective layer: a fixed mask on a layer's output."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..errors import SpecError
from .masks import BoolArray


class Defect(nn.Module):
    """Zeroes the defective neurons of a layer's output, in training and in use alike.

    (N, C, H, W) in, the same out: unchanged where the mask is True, exactly 0 elsewhere, whatever stood there (also NaN). Kept neurons
    are not scaled. `mask` is a bool buffer: it is saved with the weights and never trained. Source: arXiv 1911.08432, section 3.

    Args:
        mask: bool, of a shape that broadcasts over (C, H, W), as `defect_mask` draws it.

    Raises:
        SpecError: the mask is not bool or has not three axes.
    """

    mask: torch.Tensor

    def __init__(self, mask: BoolArray) -> None:
        super().__init__()
        if mask.dtype != np.bool_ or mask.ndim != 3:
            raise SpecError(f"a mask must be of bool with the axes (C, H, W), got {mask.dtype} with the shape {mask.shape}")
        self.register_buffer("mask", torch.from_numpy(mask.copy()))

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Apply the mask."""
        # where, not a product: 0 * NaN is NaN, exporters fold small products into float constants, and float16 has no product with bool.
        return torch.where(self.mask, activations, 0.0)

    def extra_repr(self) -> str:
        """Return the mask's shape and the fraction that is kept."""
        return f"{'x'.join(str(extent) for extent in self.mask.shape)}, kept={self.mask.float().mean().item():.4f}"


def defect_masks(module: nn.Module) -> dict[str, BoolArray]:
    """Return the masks of a network: full buffer names (such as `stem.defect.mask`) with bool arrays, in the order of the layers."""
    return {
        f"{path}.mask" if path else "mask": layer.mask.detach().cpu().numpy().copy()
        for path, layer in module.named_modules()
        if isinstance(layer, Defect)
    }
