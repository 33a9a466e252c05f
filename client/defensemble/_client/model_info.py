"""Inputs, outputs and class names of a served model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from numpy.typing import NDArray

from .._exceptions import InputError
from .._transport.base import ModelMetadata, OutputRequest

# No real model states more, and more would exhaust this process's memory.
_MAX_CLASSES = 1 << 20
_MAX_IMAGE_VALUES = 1 << 28

ENSEMBLE_OUTPUTS = ("probabilities", "member_probabilities", "entropy", "mutual_information")
_NAMES = f"a sequence of names, some of {', '.join(ENSEMBLE_OUTPUTS)}"


@dataclass(frozen=True)
class ModelInfo:
    """A model that classifies images.

    Attributes:
        name: Name of the model.
        platform: Triton's platform, `ensemble` for an ensemble.
        input_name: Name of the input.
        image_shape: (C, H, W) of an image; -1 for any size.
        outputs: Names of the outputs.
        max_batch_size: The largest batch; None if it is unknown.
        class_names: Names of the classes; the indices as strings if the model has no names.
        steps: The models that an ensemble runs, in order, or that a fused graph consists of.
        preprocessing: The parameter of that name in the model's configuration, JSON that describes how images are resized; None if there is
            none, or if the server restricts configurations.
        missing_features: Parts of Triton's protocol that the server was found not to have, such as `model configuration`: the client goes
            without them.

    Example:
        >>> info = client.describe("ensemble")
        >>> info.image_shape, info.max_batch_size, info.class_names
    """

    name: str
    platform: str
    input_name: str
    image_shape: tuple[int, int, int]
    outputs: tuple[str, ...]
    max_batch_size: int | None
    class_names: tuple[str, ...]
    steps: tuple[str, ...]
    preprocessing: str | None = None
    missing_features: frozenset[str] = frozenset()

    @property
    def is_ensemble(self) -> bool:
        """Whether the model averages members: an ensemble that Triton runs, or a fused graph of all members."""
        return is_ensemble_signature(self.platform, [self.input_name], self.outputs)

    @property
    def score_output(self) -> str:
        """The output with the scores of the classes: `probabilities`, or `logits`, whose softmax the client computes."""
        return "probabilities" if "probabilities" in self.outputs else "logits"


@dataclass(frozen=True)
class Signature:
    """Names and shapes of a classifier, from its metadata."""

    input_name: str
    image_shape: tuple[int, int, int]
    score_output: str
    num_classes: int


def signature_from_metadata(metadata: ModelMetadata) -> Signature:
    """Return the signature of an image classifier.

    Raises:
        InputError: The model is no image classifier, or it states impossible sizes.
    """
    expected = "expected one FP32 input of shape [N, C, H, W] and an FP32 output `probabilities` or `logits` of shape [N, K]"
    if len(metadata.inputs) != 1 or metadata.inputs[0].datatype != "FP32" or len(metadata.inputs[0].shape) != 4:
        got = ", ".join(f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in metadata.inputs)
        raise InputError(f"model {metadata.name!r} does not take images: its inputs are {got or 'none'}; {expected}")
    outputs = {tensor.name: tensor for tensor in metadata.outputs}
    for name in ("probabilities", "logits"):
        if name in outputs and outputs[name].datatype == "FP32" and len(outputs[name].shape) == 2 and outputs[name].shape[1] > 0:
            _, channels, height, width = metadata.inputs[0].shape
            values = math.prod(max(size, 1) for size in (channels, height, width))
            if values > _MAX_IMAGE_VALUES or outputs[name].shape[1] > _MAX_CLASSES:
                raise InputError(
                    f"model {metadata.name!r} states {values} values per image and {outputs[name].shape[1]} classes; "
                    f"expected at most {_MAX_IMAGE_VALUES} and {_MAX_CLASSES}. Check its configuration."
                )
            return Signature(metadata.inputs[0].name, (channels, height, width), name, outputs[name].shape[1])
    got = ", ".join(f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in metadata.outputs)
    raise InputError(f"model {metadata.name!r} does not classify: its outputs are {got or 'none'}; {expected}")


def is_ensemble_signature(platform: str, inputs: Iterable[str], outputs: Iterable[str]) -> bool:
    """Return whether a model is an ensemble: one that Triton runs, or a fused graph.

    A fused graph is identified by its tensors, since its configuration may be restricted. An averaging model has the same outputs, but
    takes logits.
    """
    return platform == "ensemble" or (list(inputs) == ["images"] and {"probabilities", "member_probabilities"} <= set(outputs))


def is_ensemble_metadata(metadata: ModelMetadata) -> bool:
    """Return whether the metadata are those of an ensemble; see `is_ensemble_signature`."""
    inputs, outputs = ([tensor.name for tensor in tensors] for tensors in (metadata.inputs, metadata.outputs))
    return is_ensemble_signature(metadata.platform, inputs, outputs)


def steps_from_config(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the models that an ensemble runs, or that a fused graph consists of, in order; empty for any other model."""
    steps = config.get("ensemble_scheduling", {}).get("step", [])
    if steps:
        return tuple(str(step["model_name"]) for step in steps)
    try:
        members = json.loads(config.get("parameters", {}).get("members", {}).get("string_value", "[]"))
    except (ValueError, RecursionError):  # a parameter that is not ours
        return ()
    is_valid = isinstance(members, list) and all(isinstance(member, str) for member in members)
    return tuple(member.rpartition("@")[0] for member in members) if is_valid else ()


def preprocessing_from_config(config: dict[str, Any]) -> str | None:
    """Return the `preprocessing` parameter of a configuration, which describes how images are resized; None if there is none."""
    parameter = config.get("parameters", {}).get("preprocessing")
    return None if parameter is None else str(parameter.get("string_value", ""))


def class_names_from_response(values: NDArray[Any], num_classes: int) -> tuple[str, ...]:
    """Return the class names in index order, from the strings that the classification extension returns for one image.

    Raises:
        ValueError: A string is neither `value:index:name` nor `value:index`.
    """
    names = [str(index) for index in range(num_classes)]
    for text in values.ravel().tolist():
        _, index, *name = text.decode("utf-8", "replace").split(":", 2)
        if not 0 <= int(index) < num_classes:
            raise ValueError(f"class {index} of {num_classes}")
        if name and name[0]:
            names[int(index)] = name[0]
    return tuple(names)


def matches_model(shape: tuple[int, ...], info: ModelInfo, layout: str) -> bool:
    """Return whether an array of this shape holds images of a model's size.

    Args:
        shape: The shape of the array.
        info: The model.
        layout: Order of the array's axes, `NCHW` or `NHWC`.
    """
    if len(shape) != 4:
        return False
    got = shape[1:] if layout == "NCHW" else (shape[3], *shape[1:3])
    return got == info.image_shape or all(
        size == expected if expected > 0 else size > 0 for size, expected in zip(got, info.image_shape, strict=True)
    )


def names_from_outputs(outputs: object) -> tuple[str, ...]:
    """Return output names as a tuple.

    Raises:
        InputError: They are not a sequence of strings.
    """
    if isinstance(outputs, str):
        fix = f"outputs=({outputs!r},)" if outputs in ENSEMBLE_OUTPUTS else f"model={outputs!r:.100} if it is the name of a model"
        raise InputError(f"outputs must be {_NAMES}, got the string {outputs!r:.100}: pass {fix}")
    try:
        names: tuple[Any, ...] = tuple(outputs)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"outputs must be {_NAMES}, got {outputs!r:.100}: pass outputs=('probabilities',), or omit it") from None
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"outputs must be {_NAMES}, got the {type(name).__name__} {name!r:.100} in it")
    return names


def requests_from_outputs(outputs: tuple[str, ...], info: ModelInfo) -> tuple[OutputRequest, ...]:
    """Return the outputs to request from a model, each once. If it has logits, the client computes the others from them.

    Raises:
        InputError: An output is unknown, or the model does not have it.
    """
    return _requests(outputs, info.name, info.outputs)


@lru_cache(maxsize=256)  # not by ModelInfo: to hash the names of 1000 classes takes 14 us
def _requests(outputs: tuple[str, ...], model: str, served: tuple[str, ...]) -> tuple[OutputRequest, ...]:
    requested = tuple(dict.fromkeys(outputs))
    if not requested:
        raise InputError(f"outputs is empty; expected some of {', '.join(ENSEMBLE_OUTPUTS)}")
    unknown = [name for name in requested if name not in ENSEMBLE_OUTPUTS]
    if unknown:
        raise InputError(f"unknown outputs {', '.join(unknown)}; expected some of {', '.join(ENSEMBLE_OUTPUTS)}")
    if "probabilities" not in served:
        unavailable = [name for name in requested if name not in ("probabilities", "entropy")]
        if unavailable:
            raise InputError(f"model {model!r} is a single network, without {' or '.join(unavailable)}: request these from an ensemble")
        return (OutputRequest("logits"),)
    missing = [name for name in requested if name not in served and name != "entropy"]
    if missing:
        raise InputError(f"model {model!r} has no output {', '.join(missing)}; it has {', '.join(served)}")
    if "entropy" not in served:
        requested = tuple(dict.fromkeys("probabilities" if name == "entropy" else name for name in requested))
    return tuple(OutputRequest(name) for name in requested)
