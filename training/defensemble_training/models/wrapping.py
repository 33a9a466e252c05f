"""Add defective layers to any network: masks on the outputs of named layers."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import SpecError
from ..validation import check_choice, checked_integer
from .defect import Defect
from .layers import Shape
from .masks import PATTERNS, SAMPLINGS, checked_keep, defect_mask


class DefectiveLayer(nn.Module):
    """A layer and the mask on its output. Other attributes, such as `weight` or `out_channels`, are those of the layer."""

    def __init__(self, layer: nn.Module, defect: Defect) -> None:
        super().__init__()
        self.layer = layer
        self.defect = defect

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Call the layer, then apply the mask."""
        return self.defect(self.layer(*args, **kwargs))  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # Python's own protocols, such as `__deepcopy__`, are for this module
                raise
            return getattr(super().__getattr__("layer"), name)


def defective(
    module: nn.Module,
    example_shape: Sequence[int],
    *,
    layers: Sequence[str],
    keep: float,
    pattern: str = "neuron",
    sampling: str = "bernoulli",
    mask_seed: int = 0,
) -> nn.Module:
    """Return a copy of a network in which each named layer is followed by a `Defect`. The network itself is not changed.

    The layer at `path` becomes `path.layer`, with its weights. Its mask is the buffer `path.defect.mask`, which depends only on the seed,
    `path.defect` and the shape, not on the other layers. keep=1.0 adds no masks. The result can be trained, saved and exported like any
    module. The function does not check that the masks leave a path from the image to the output. Source: arXiv 1911.08432.

    Args:
        module: A network that takes one tensor (N, C, H, W).
        example_shape: (C, H, W) of one image. A batch of zeros goes through the network in eval mode to find the shapes of the masks. The
            result then accepts only images of this shape.
        layers: Names from `module.named_modules()`. Each layer must run exactly once per forward pass and return one tensor (N, C, H, W).
        keep: Keep probability in (0, 1].
        pattern: `neuron`, `channel` or `shared`.
        sampling: `bernoulli` or `exact`.
        mask_seed: Seed of all masks, at least 0.

    Raises:
        SpecError: A value is out of range, a layer does not exist, runs never or several times or returns something else, or the network
            does not accept the example.

    Example:
        >>> network = defective(torchvision.models.resnet18(), (3, 224, 224), layers=["conv1", "layer1"], keep=0.5)
    """
    keep = checked_keep(keep)
    check_choice("pattern", pattern, PATTERNS)
    check_choice("sampling", sampling, SAMPLINGS)
    mask_seed = checked_integer("mask_seed", mask_seed, minimum=0)
    names = _checked_layers(module, layers)
    if len(example_shape) != 3:
        raise SpecError(f"example_shape must be (C, H, W), got {tuple(example_shape)}")
    example = tuple(checked_integer("each of (C, H, W) in example_shape", extent, minimum=1) for extent in example_shape)
    outputs = _trace(f"the network does not accept two images of zeros of the shape {example}", module, names, example)
    result = copy.deepcopy(module)
    if keep == 1.0:
        return result
    for name in sorted(names, key=lambda name: name.count("."), reverse=True):  # inner layers first, so that outer paths stay valid
        shape, device = outputs[name]
        defect = Defect(defect_mask(shape, keep, pattern, sampling, seed=mask_seed, name=f"{name}.defect")).to(device)
        layer = result.get_submodule(name)
        wrapped = DefectiveLayer(layer, defect)
        wrapped.training = defect.training = layer.training  # not .train(): submodules may be in another mode
        result.set_submodule(name, wrapped)
    # Raises if the network does not call a layer by its name, so that the mask has no effect, or needs the layer's own class.
    _trace("the network fails with masks after these layers; name others, such as layers inside them", result, names, example)
    return result


def _checked_layers(module: nn.Module, layers: Sequence[str]) -> list[str]:
    if isinstance(layers, (str, bytes)) or not layers:
        raise SpecError(f"layers must be a list of layer names, such as ['conv1'], got {layers!r}")
    modules = {name: layer for name, layer in module.named_modules() if name}
    for name in layers:
        if name not in modules:
            similar = difflib.get_close_matches(str(name), modules, n=5, cutoff=0.4) or list(modules)[:5]
            raise SpecError(f"the network has no layer {name!r}; similar names: {', '.join(similar) or 'none'}")
        parent = modules.get(name.rpartition(".")[0])
        if isinstance(modules[name], (Defect, DefectiveLayer)) or isinstance(parent, DefectiveLayer):
            raise SpecError(f"the layer {name!r} already has a mask; name each layer once, in one call")
    if len(set(layers)) != len(layers):
        raise SpecError(f"layers must be different names, got {list(layers)}, which has duplicates")
    return list(layers)


def _trace(failure: str, module: nn.Module, names: list[str], example: tuple[int, ...]) -> dict[str, tuple[Shape, torch.device]]:
    """Return the output shape (C, H, W) and device of each named layer, for a batch of two images of zeros."""
    trial = copy.deepcopy(module).eval()
    results: dict[str, list[Any]] = {name: [] for name in names}
    for name in names:
        trial.get_submodule(name).register_forward_hook(lambda _layer, _inputs, output, name=name: results[name].append(output))
    parameter = next((parameter for parameter in trial.parameters() if parameter.is_floating_point()), torch.zeros(()))
    images = torch.zeros(2, *example, dtype=parameter.dtype, device=parameter.device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial(images)
    except Exception as error:  # the user's code may raise anything
        raise SpecError(f"{failure}: {error}") from error
    shapes = {}
    for name, outputs in results.items():
        if len(outputs) != 1:
            raise SpecError(
                f"the layer {name!r} runs {len(outputs)} times per forward pass (calls by its name); expected once, because a mask belongs "
                "to one tensor"
            )
        (output,) = outputs
        if not isinstance(output, torch.Tensor) or output.ndim != 4 or output.shape[0] != 2:
            got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise SpecError(f"the layer {name!r} must return (N, C, H, W), got {got} for N = 2")
        shapes[name] = ((output.shape[1], output.shape[2], output.shape[3]), output.device)
    return shapes
