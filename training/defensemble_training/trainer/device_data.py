"""A run's training images: on the device as a whole if they fit, else in their file, of which each step reads its part."""

from __future__ import annotations

import numpy as np
import torch

from defensemble_images.memory import free_memory

from ..data.dataset import Part

# Of what is free on a GPU, and of a processor's memory, this much at most: the network wants its own.
_LARGEST_SHARE = 0.4


class DeviceDataset:
    """The images and labels of a part, by numbers."""

    def __init__(self, part: Part, device: torch.device) -> None:
        self._device = device
        self._labels = torch.from_numpy(np.array(part.labels)).to(device)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
        self._in_file = part if part.nbytes > _LARGEST_SHARE * free else None
        # A copy: a memory map may not be written to, and torch warns of it.
        self._pixels = None if self._in_file is not None else torch.from_numpy(np.array(part.pixels)).to(device)

    def __getitem__(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the chosen (n,) images (n, C, H, W), as they are stored, and labels, on the device."""
        labels = self._labels[chosen.to(self._device)]
        if self._pixels is not None:
            return self._pixels[chosen.to(self._device)], labels
        assert self._in_file is not None
        # In the order of the file, which is then read forwards.
        order = np.argsort(chosen.numpy())
        pixels = self._in_file.raw_pixels(chosen.numpy()[order])[np.argsort(order)]
        return torch.from_numpy(pixels).to(self._device, non_blocking=True), labels
