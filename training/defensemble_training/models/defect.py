"""The defective layer: a fixed mask on the output of a layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..errors import SpecError
from .masks import BoolArray


class Defect(nn.Module):
    """Zero the defective neurons of a layer's output, in training and in inference.

    Input and output are (N, C, H, W). The output equals the input where the mask is True and is exactly 0 elsewhere, even for NaN. Kept
    neurons are not scaled. `mask` is a bool buffer: it is saved with the weights and never trained. Source: arXiv 1911.08432, section 3.

    Args:
        mask: Bool, of a shape that broadcasts to (C, H, W), such as the result of `defect_mask`.

    Raises:
        SpecError: The mask is not bool or does not have three axes.

    Example:
        >>> layer = Defect(defect_mask((64, 32, 32), keep=0.5, seed=0, name="conv1.defect"))
    """

    mask: torch.Tensor

    def __init__(self, mask: BoolArray) -> None:
        super().__init__()
        if mask.dtype != np.bool_ or mask.ndim != 3:
            raise SpecError(f"a mask must be a bool array with the axes (C, H, W), got {mask.dtype} with the shape {mask.shape}")
        self.register_buffer("mask", torch.from_numpy(mask.copy()))

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Apply the mask."""
        # `where`, not a product: 0 * NaN is NaN, exporters fold small products into float constants, and float16 * bool is not supported.
        return torch.where(self.mask, activations, 0.0)

    def extra_repr(self) -> str:
        """Return the mask's shape and the fraction of kept positions."""
        return f"{'x'.join(str(extent) for extent in self.mask.shape)}, kept={self.mask.float().mean().item():.4f}"


def defect_masks(module: nn.Module) -> dict[str, BoolArray]:
    """Return the masks of a network as bool arrays by full buffer name, such as `stem.defect.mask`, in the order of the layers."""
    return {
        f"{path}.mask" if path else "mask": layer.mask.detach().cpu().numpy().copy()
        for path, layer in module.named_modules()
        if isinstance(layer, Defect)
    }
