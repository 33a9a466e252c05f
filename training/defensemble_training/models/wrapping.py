"""Defective layers in a network of the user's own: masks behind the layers that the user names."""

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
    """A layer and the mask on its output. What it lacks itself, such as `weight` or `out_channels`, it takes from the layer."""

    def __init__(self, layer: nn.Module, defect: Defect) -> None:
        super().__init__()
        self.layer = layer
        self.defect = defect

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Call the layer with all arguments, then apply the mask."""
        return self.defect(self.layer(*args, **kwargs))  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # what Python itself asks for (`__deepcopy__`) is asked of this module
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
    """Return a copy of a network in which each named layer is followed by one `Defect`; the network itself stays as it is.

    The layer at `path` becomes `path.layer`, with its weights, and its mask is the buffer `path.defect.mask`, drawn under the name
    `path.defect`: by seed, path and shape, whatever other layers are named. keep=1.0 adds none. The result trains, is saved and is exported
    like any module. That masks which keep nothing do not make the network constant is the caller's to see. Source: arXiv 1911.08432.

    Args:
        module: takes one tensor (N, C, H, W).
        example_shape: (C, H, W) of one image: zeros of this shape go through the network, in eval mode, to find the sizes of masks. The
            network can then be called with images of this shape only.
        layers: names as in `module.named_modules()`; each must run exactly once a forward pass and return one tensor (N, C, H, W).
        keep: keep probability in (0, 1].
        pattern: `neuron`, `channel` or `shared`.
        sampling: `bernoulli` or `exact`.
        mask_seed: the seed of all masks, at least 0.

    Raises:
        SpecError: a value is outside of its range, a name is not that of a layer, a layer runs never or several times or returns
            something else, or the network does not take the example.
    """
    keep = checked_keep(keep)
    check_choice("pattern", pattern, PATTERNS)
    check_choice("sampling", sampling, SAMPLINGS)
    mask_seed = checked_integer("mask_seed", mask_seed, minimum=0)
    names = _checked_layers(module, layers)
    if len(example_shape) != 3:
        raise SpecError(f"example_shape must be (C, H, W), got {tuple(example_shape)}")
    example = tuple(checked_integer("each of (C, H, W) in example_shape", extent, minimum=1) for extent in example_shape)
    outputs = _traced(f"the network does not take two images of zeros of the shape {example}", module, names, example)
    result = copy.deepcopy(module)
    if keep == 1.0:
        return result
    for name in sorted(names, key=lambda name: name.count("."), reverse=True):  # inner layers first: the outer ones' paths then hold
        shape, device = outputs[name]
        defect = Defect(defect_mask(shape, keep, pattern, sampling, seed=mask_seed, name=f"{name}.defect")).to(device)
        layer = result.get_submodule(name)
        wrapped = DefectiveLayer(layer, defect)
        wrapped.training = defect.training = layer.training  # not .train(): a layer may hold others in another mode
        result.set_submodule(name, wrapped)
    # Raises where the network calls a layer past its name, so that its mask would do nothing, or treats it as what it no longer is.
    _traced("the network does not run with masks behind these layers; name others, such as layers inside of them", result, names, example)
    return result


def _checked_layers(module: nn.Module, layers: Sequence[str]) -> list[str]:
    if isinstance(layers, (str, bytes)) or not layers:
        raise SpecError(f"layers must be a list of names of layers, such as ['conv1'], got {layers!r}")
    known = {name: layer for name, layer in module.named_modules() if name}
    for name in layers:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=5, cutoff=0.4) or list(known)[:5]
            raise SpecError(f"the network has no layer {name!r}; layers of near names: {', '.join(near) or 'none at all'}")
        parent = known.get(name.rpartition(".")[0])
        if isinstance(known[name], (Defect, DefectiveLayer)) or isinstance(parent, DefectiveLayer):
            raise SpecError(f"the layer {name!r} has a mask already; name each layer once, in one call")
    if len(set(layers)) != len(layers):
        raise SpecError(f"layers must be different names, got {list(layers)}, with one of them twice")
    return list(layers)


def _traced(failure: str, module: nn.Module, names: list[str], example: tuple[int, ...]) -> dict[str, tuple[Shape, torch.device]]:
    """Return the shape (C, H, W) and the device of what each named layer returns for a batch of two images of zeros."""
    trial = copy.deepcopy(module).eval()
    seen: dict[str, list[Any]] = {name: [] for name in names}
    for name in names:
        trial.get_submodule(name).register_forward_hook(lambda _layer, _given, result, name=name: seen[name].append(result))
    parameter = next((parameter for parameter in trial.parameters() if parameter.is_floating_point()), torch.zeros(()))
    images = torch.zeros(2, *example, dtype=parameter.dtype, device=parameter.device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial(images)
    except Exception as error:  # the user's code may raise anything
        raise SpecError(f"{failure}: {error}") from error
    outputs = {}
    for name, results in seen.items():
        if len(results) != 1:
            raise SpecError(
                f"the layer {name!r} runs {len(results)} times in a forward pass, counted where it is called by its name, expected once: "
                "one mask belongs to one tensor"
            )
        (result,) = results
        if not isinstance(result, torch.Tensor) or result.ndim != 4 or result.shape[0] != 2:
            got = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
            raise SpecError(f"the layer {name!r} must return (N, C, H, W), got {got} for N = 2")
        outputs[name] = ((result.shape[1], result.shape[2], result.shape[3]), result.device)
    return outputs
