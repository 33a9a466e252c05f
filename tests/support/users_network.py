"""A network that is not ours, as a user may have written it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class UsersNetwork(nn.Module):
    """Images (N, 3, H, W) to logits (N, 5); a grouped convolution, a container, a layer whose attributes the network reads."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 12, 3, groups=2))
        self.norm = nn.GroupNorm(3, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = functional.silu(self.norm(self.features(images.to(self.norm.weight.dtype))))
        return self.head(features.amax(dim=(2, 3)))  # type: ignore[no-any-return]
