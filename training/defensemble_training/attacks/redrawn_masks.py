"""Draw the masks of defective networks again during an attack, which then follows the expected gradient over masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from ..errors import SpecError
from ..models.defect import Defect
from ..models.masks import defect_mask
from ..models.spec import ModelSpec
from ..seeding import derive_seed
from ..validation import checked_integer


@dataclass(frozen=True)
class RedrawnMasks:
    """Average each gradient over fresh masks (expectation over transformation, arXiv 1707.07397), for `attack`.

    In each draw all networks get new masks of their own keep, pattern and sampling. The masks depend on the seed, the step, the draw and
    the position of the network, not on the images, so the example of an image does not depend on its batch.

    Attributes:
        networks: The defective networks of the attacked module, each with its spec. Networks without masks are not changed.
        draws: Gradients to average in each step, at least 1.
        seed: Seed of the masks, at least 0.

    Raises:
        SpecError: A value is out of range, or no network has masks.

    Example:
        >>> attack("pgd16", AveragedProbabilities([first, second]), images, labels, masks=RedrawnMasks([(first, spec), (second, other)]))
    """

    networks: Sequence[tuple[nn.Module, ModelSpec]] = field(repr=False)
    draws: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        checked_integer("the draws of redrawn masks", self.draws, minimum=1)
        checked_integer("the seed of redrawn masks", self.seed, minimum=0, maximum=2**63 - 1)
        if not any(self._layers()):
            raise SpecError("masks can only be redrawn in defective networks, got none with masks; attack standard networks without them")

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the present masks on exit."""
        masks = [(layer, layer.mask) for _, _, _, layer in self._layers()]
        try:
            yield
        finally:
            for layer, mask in masks:
                layer.mask = mask

    def mean_gradient(self, step: int, gradient: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the mean of a gradient over the draws of a step.

        Args:
            step: Number of the step.
            gradient: Computes the gradient with the present masks.
        """
        gradients = []
        for draw in range(self.draws):
            self.redraw(step, draw)
            gradients.append(gradient())
        return torch.stack(gradients).mean(dim=0)

    def redraw(self, step: int, draw: int) -> None:
        """Set the masks of a draw.

        Args:
            step: Number of the step.
            draw: Number of the draw in the step.
        """
        for index, spec, path, layer in self._layers():
            seed = derive_seed(self.seed, "redrawn masks", index, step, draw)
            # The shape of a mask gives itself: for the pattern `channel`, (C, 1, 1) has the mask (C, 1, 1).
            mask = defect_mask(tuple(layer.mask.shape), spec.keep, spec.pattern, spec.sampling, seed=seed, name=path)
            layer.mask = torch.from_numpy(mask).to(layer.mask.device)

    def _layers(self) -> Iterator[tuple[int, ModelSpec, str, Defect]]:
        for index, (network, spec) in enumerate(self.networks):
            for path, layer in network.named_modules():
                if isinstance(layer, Defect):
                    yield index, spec, path or "defect", layer
