"""Average several networks, to attack them as one source."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from ..errors import SpecError
from ..validation import checked_number


class AveragedLogits(nn.Module):
    """Average the logits of several networks, to attack them as one source (the paper's Table 8).

    Raises:
        SpecError: `modules` is empty.

    Example:
        >>> examples = attack("pgd16", AveragedLogits([first, second]), images, labels)
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.sources = _checked_modules(type(self).__name__, modules)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (N, K)."""
        return torch.stack([source(images) for source in self.sources]).mean(dim=0)


class AveragedProbabilities(nn.Module):
    """Average the probabilities of several networks, as an ensemble is served, to attack them as one source.

    The result is the logarithm of the average, whose softmax is the average: the cross-entropy of these logits is that of the served
    probabilities.

    Args:
        modules: The networks.
        weights: Their weights, above 0, of any sum; equal by default.

    Raises:
        SpecError: `modules` is empty, or the weights do not match.

    Example:
        >>> examples = attack("pgd16", AveragedProbabilities([first, second], weights=[2, 1]), images, labels)
    """

    log_weights: torch.Tensor

    def __init__(self, modules: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.sources = _checked_modules(type(self).__name__, modules)
        weights = [1.0] * len(modules) if weights is None else list(weights)
        if len(weights) != len(modules):
            raise SpecError(f"AveragedProbabilities must have one weight per module, {len(modules)}, got {len(weights)}")
        values = [
            checked_number("a weight of AveragedProbabilities", weight, "above 0", lambda value: 0 < value < math.inf) for weight in weights
        ]
        log_weights = torch.tensor(values, dtype=torch.float64).log()
        self.register_buffer("log_weights", (log_weights - log_weights.logsumexp(dim=0)).float().reshape(-1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logarithms (N, K) of the average of the probabilities."""
        # In logarithms: a probability that underflows to 0 has no gradient, and its logarithm is infinite.
        log_probabilities = torch.stack([functional.log_softmax(source(images), dim=1) for source in self.sources])
        return torch.logsumexp(log_probabilities + self.log_weights, dim=0)


def _checked_modules(name: str, modules: Sequence[nn.Module]) -> nn.ModuleList:
    if not modules:
        raise SpecError(f"{name} must have at least one module, got none")
    return nn.ModuleList(modules)
