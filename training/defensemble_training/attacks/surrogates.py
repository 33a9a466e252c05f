"""The networks whose gradients an attacker has: loaded from checkpoints, and joined to the source of an attack."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from defensemble_images import ClassNamesError, match_classes

from ..checkpoint import load_checkpoint
from ..content_digest import content_digest
from ..errors import SpecError
from ..evaluation import device_of
from ..models.defect import defect_masks
from ..models.masks import mask_digest
from ..models.spec import ModelSpec
from .averages import AveragedLogits, AveragedProbabilities
from .examples import SourceAttack
from .redrawn_masks import RedrawnMasks


@dataclass(frozen=True)
class Surrogate:
    """A network on which examples are crafted. It must not be a member of the target.

    Attributes:
        name: Unique name.
        module: The network, which maps images float32 (N, C, H, W) in [0, 1] to logits.
        class_names: Names of the classes in the order of the logits.
        spec: Its spec; only needed to redraw its masks.

    Example:
        >>> module, spec, record = load_checkpoint("surrogate.safetensors")
        >>> Surrogate("mine", module, record.class_names, spec)
    """

    name: str
    module: nn.Module
    class_names: tuple[str, ...]
    spec: ModelSpec | None = None

    def identity(self) -> dict[str, object]:
        """Return name, digests and spec as JSON."""
        masks = defect_masks(self.module)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.module.state_dict().items()}
        return {
            "name": self.name,
            "digest": content_digest({}, state),
            "mask_digest": mask_digest(masks) if masks else None,
            "spec": None if self.spec is None else dataclasses.asdict(self.spec),
        }


def load_surrogates(paths: Sequence[str | os.PathLike[str]], device: torch.device | str | None = None) -> tuple[Surrogate, ...]:
    """Load surrogates from checkpoints. Each has the name of its file.

    Args:
        paths: The checkpoints, at least one, of different names.
        device: Where to put them; None for a GPU if there is one.

    Raises:
        SpecError: There is no path, or two have the same name.
        CheckpointError: A file is not a checkpoint.
        OSError: A file cannot be read.

    Example:
        >>> surrogates = load_surrogates(["surrogate-a.safetensors", "surrogate-b.safetensors"])
    """
    if not paths:
        raise SpecError("the list of surrogates is empty; expected at least one checkpoint (--surrogate FILE)")
    names = [Path(path).name.removesuffix(".safetensors") for path in paths]
    if len(set(names)) != len(names):
        raise SpecError(f"surrogates must have different file names, which name them in results; got {', '.join(names)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = [load_checkpoint(path) for path in paths]
    return tuple(
        Surrogate(name, module.to(device), record.class_names, spec) for name, (module, spec, record) in zip(names, loaded, strict=True)
    )


def source_of(
    attack: SourceAttack, surrogates: Mapping[str, Surrogate], class_names: Sequence[str], seed: int
) -> tuple[nn.Module, RedrawnMasks | None]:
    """Return the module that an attack differentiates, with the classes in one order, and the masks that it redraws.

    Args:
        attack: The attack, which names its surrogates.
        surrogates: All surrogates by name.
        class_names: The order of the classes.
        seed: Seed of redrawn masks.

    Raises:
        SpecError: A surrogate is missing, has other classes, or has no masks to redraw.
    """
    missing = [name for name in attack.surrogates if name not in surrogates]
    if missing:
        raise SpecError(f"the attack {attack.name!r} needs the surrogates {', '.join(missing)}; got {', '.join(surrogates) or 'none'}")
    chosen = [surrogates[name] for name in attack.surrogates]
    modules = [in_order_of(surrogate, class_names) for surrogate in chosen]
    module = modules[0]
    if attack.average != "none":
        average = AveragedProbabilities if attack.average == "probabilities" else AveragedLogits
        module = average(modules).to(device_of(module))
    if not attack.draws:
        return module, None
    unknown = [surrogate.name for surrogate in chosen if surrogate.spec is None and defect_masks(surrogate.module)]
    if unknown:
        raise SpecError(f"the masks of {', '.join(unknown)} cannot be redrawn without a spec; pass one, or draws=0")
    networks = [(surrogate.module, surrogate.spec) for surrogate in chosen if surrogate.spec is not None]
    return module, RedrawnMasks(networks, attack.draws, seed)


def in_order_of(surrogate: Surrogate, class_names: Sequence[str]) -> nn.Module:
    """Return a surrogate's network with its logits in another order of the classes, which are matched by name.

    Args:
        surrogate: The surrogate.
        class_names: The order.

    Raises:
        SpecError: The surrogate has other classes.
    """
    try:
        index = match_classes(surrogate.class_names, class_names, f"the surrogate {surrogate.name!r}", "the target")
    except ClassNamesError as error:
        raise SpecError(str(error)) from error
    if len(index) != len(class_names):
        raise SpecError(f"the surrogate {surrogate.name!r} must have the {len(class_names)} classes of the target, got {len(index)}")
    return surrogate.module if np.array_equal(index, np.arange(len(index))) else _ReorderedLogits(surrogate.module, np.argsort(index))


class _ReorderedLogits(nn.Module):
    """A network with its logits in another order."""

    order: torch.Tensor

    def __init__(self, module: nn.Module, order: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("order", torch.from_numpy(order), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.module(images)[:, self.order]  # type: ignore[no-any-return]
