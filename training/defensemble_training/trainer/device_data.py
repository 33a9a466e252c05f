"""The training images of a run: on the device if they fit, otherwise read from their file at each step."""

from __future__ import annotations

import numpy as np
import torch

from defensemble_images.memory import free_memory

from ..data.dataset import Part

# Largest fraction of the free memory (of the GPU or the machine) for images. The network needs the rest.
_MAX_MEMORY_FRACTION = 0.4


class DeviceDataset:
    """The images and labels of a part, by index."""

    def __init__(self, part: Part, device: torch.device) -> None:
        self._device = device
        self._labels = torch.from_numpy(np.array(part.labels)).to(device)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
        self._file_part = part if part.nbytes > _MAX_MEMORY_FRACTION * free else None
        # A copy: torch warns about read-only arrays such as memory maps.
        self._pixels = None if self._file_part is not None else torch.from_numpy(np.array(part.pixels)).to(device)

    def __getitem__(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pixels (n, C, H, W), in their stored dtype, and the labels for indices (n,), on the device."""
        labels = self._labels[indices.to(self._device)]
        if self._pixels is not None:
            return self._pixels[indices.to(self._device)], labels
        assert self._file_part is not None
        # In file order, so that the file is read forwards.
        order = np.argsort(indices.numpy())
        pixels = self._file_part.raw_pixels(indices.numpy()[order])[np.argsort(order)]
        return torch.from_numpy(pixels).to(self._device, non_blocking=True), labels
