"""What a served model takes and gives, as far as a client needs to know it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defensemble_images import image_problem

from .._exceptions import InputError
from .._transport.base import ModelMetadata, OutputRequest

# A model that states more is no real one, and would take this process's memory.
_MOST_CLASSES = 1 << 20
_MOST_VALUES_AN_IMAGE = 1 << 28

ENSEMBLE_OUTPUTS = ("probabilities", "member_probabilities", "entropy", "mutual_information")
_NAMES = f"a sequence of names, some of {', '.join(ENSEMBLE_OUTPUTS)}"


@dataclass(frozen=True)
class ModelInfo:
    """A model that classifies images.

    `image_shape` is (C, H, W), -1 where any size will do; `max_batch_size` is None where it is unknown; `class_names` are
    indices as text where the model has no names; `steps` are the models that an ensemble runs, in order, or that a fused graph is made of.
    `preprocessing` is the parameter of that name in the model's configuration, a JSON text that states how images are brought to its size;
    None where there is none, or where the server does not show configurations.
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

    @property
    def is_ensemble(self) -> bool:
        """Whether it averages members: as an ensemble that Triton runs, or as one graph of all of them."""
        return averages_members(self.platform, [self.input_name], self.outputs)

    @property
    def score_output(self) -> str:
        """The output that holds the scores of the classes: `probabilities`, or `logits`, of which the client takes the softmax."""
        return "probabilities" if "probabilities" in self.outputs else "logits"


@dataclass(frozen=True)
class Signature:
    """The names and shapes of a classifier, from its metadata."""

    input_name: str
    image_shape: tuple[int, int, int]
    score_output: str
    num_classes: int


def signature_from_metadata(metadata: ModelMetadata) -> Signature:
    """The signature of a classifier of images; an `InputError` for any other model, such as an average of logits."""
    expected = "expected one FP32 input of shape [N, C, H, W] and an FP32 output `probabilities` or `logits` of shape [N, K]"
    if len(metadata.inputs) != 1 or metadata.inputs[0].datatype != "FP32" or len(metadata.inputs[0].shape) != 4:
        got = ", ".join(f"{t.name} {t.datatype} {list(t.shape)}" for t in metadata.inputs)
        raise InputError(f"model {metadata.name!r} does not take images: its inputs are {got or 'none'}, {expected}")
    outputs = {t.name: t for t in metadata.outputs}
    for name in ("probabilities", "logits"):
        if name in outputs and outputs[name].datatype == "FP32" and len(outputs[name].shape) == 2 and outputs[name].shape[1] > 0:
            _, channels, height, width = metadata.inputs[0].shape
            values = math.prod(max(size, 1) for size in (channels, height, width))
            if values > _MOST_VALUES_AN_IMAGE or outputs[name].shape[1] > _MOST_CLASSES:
                raise InputError(
                    f"model {metadata.name!r} says that an image has {values} values and {outputs[name].shape[1]} classes, "
                    f"expected at most {_MOST_VALUES_AN_IMAGE} and {_MOST_CLASSES}: look at its configuration"
                )
            return Signature(metadata.inputs[0].name, (channels, height, width), name, outputs[name].shape[1])
    got = ", ".join(f"{t.name} {t.datatype} {list(t.shape)}" for t in metadata.outputs)
    raise InputError(f"model {metadata.name!r} does not classify: its outputs are {got or 'none'}, {expected}")


def averages_members(platform: str, inputs: Iterable[str], outputs: Iterable[str]) -> bool:
    """Whether a model is an ensemble, in either form.

    A fused graph is known by the names of its tensors: its configuration may be closed to callers. An averaging model
    has the same outputs, and takes logits.
    """
    return platform == "ensemble" or (list(inputs) == ["images"] and {"probabilities", "member_probabilities"} <= set(outputs))


def steps_from_config(config: dict[str, Any]) -> tuple[str, ...]:
    """The models that an ensemble runs, or that a fused graph is made of, in order; empty for any other model."""
    steps = config.get("ensemble_scheduling", {}).get("step", [])
    if steps:
        return tuple(str(step["model_name"]) for step in steps)
    try:
        votes = json.loads(config.get("parameters", {}).get("members", {}).get("string_value", "[]"))
    except (ValueError, RecursionError):  # somebody else's parameter
        return ()
    named = isinstance(votes, list) and all(isinstance(vote, str) for vote in votes)
    return tuple(vote.rpartition("@")[0] for vote in votes) if named else ()


def preprocessing_from_config(config: dict[str, Any]) -> str | None:
    """Return how images are brought to the size of a model, as its configuration states it; None where it does not."""
    parameter = config.get("parameters", {}).get("preprocessing")
    return None if parameter is None else str(parameter.get("string_value", ""))


def class_names_from_answer(answer: NDArray[Any], num_classes: int) -> tuple[str, ...]:
    """Class names in the order of their indices, from the texts that the classification extension answers for one image.

    These are `value:index:name` or `value:index`; for any others, a `ValueError` is raised.
    """
    names = [str(index) for index in range(num_classes)]
    for text in answer.ravel().tolist():
        _, index, *name = text.decode("utf-8", "replace").split(":", 2)
        if not 0 <= int(index) < num_classes:
            raise ValueError(f"class {index} of {num_classes}")
        if name and name[0]:
            names[int(index)] = name[0]
    return tuple(names)


def fits(images: object, info: ModelInfo) -> bool:
    """Whether images have a size and a number that this model takes; True for anything that `check_images` refuses for another reason."""
    if not isinstance(images, np.ndarray) or images.ndim != 4:
        return True
    if info.max_batch_size is not None and len(images) > info.max_batch_size:
        return False
    sizes = images.shape[1:]
    return sizes == info.image_shape or all(got == size or size <= 0 for got, size in zip(sizes, info.image_shape, strict=True))


def check_images(images: object, info: ModelInfo) -> NDArray[np.float32]:
    """The images, if they are what the model takes: float32 (N, C, H, W) in [0, 1], 1 <= N <= the largest batch; else an `InputError`."""
    shape = tuple(size if size > 0 else None for size in info.image_shape)
    fault = image_problem(images, shape=shape, consumer=f"model {info.name!r}")
    if fault is not None:
        raise InputError(fault)
    images = np.asarray(images)  # of a subclass, the data alone
    if info.max_batch_size is not None and images.shape[0] > info.max_batch_size:
        advice = f"predict them {info.max_batch_size} at a time"
        raise InputError(f"model {info.name!r} takes at most {info.max_batch_size} images a call, got {images.shape[0]}: {advice}")
    return images


def names_from_outputs(outputs: object) -> tuple[str, ...]:
    """The names of outputs that a caller gave, as a tuple; an `InputError` where they are something else than names."""
    if isinstance(outputs, str):
        raise InputError(f"outputs must be {_NAMES}, got the text {outputs!r}: pass outputs=({outputs!r},)")
    if not isinstance(outputs, Iterable):
        raise InputError(f"outputs must be {_NAMES}, got {outputs!r:.100}: pass outputs=('probabilities',), or leave it out")
    names = tuple(outputs)
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"outputs must be {_NAMES}, got the {type(name).__name__} {name!r:.100} in it")
    return names


@lru_cache(maxsize=256)
def requests_from_outputs(outputs: tuple[str, ...], info: ModelInfo) -> tuple[OutputRequest, ...]:
    """The outputs to ask the model for, each once; for a model with logits, the client computes the others from them.

    An `InputError` is raised where one is unknown, or not an output of this model.
    """
    return tuple(OutputRequest(name) for name in _names(outputs, info))


def _names(outputs: tuple[str, ...], info: ModelInfo) -> tuple[str, ...]:
    asked = tuple(dict.fromkeys(outputs))
    if not asked:
        raise InputError(f"outputs is empty: pass some of {', '.join(ENSEMBLE_OUTPUTS)}")
    unknown = [name for name in asked if name not in ENSEMBLE_OUTPUTS]
    if unknown:
        raise InputError(f"unknown outputs {', '.join(unknown)}: pass some of {', '.join(ENSEMBLE_OUTPUTS)}")
    if info.score_output == "logits":
        beyond = [name for name in asked if name not in ("probabilities", "entropy")]
        if beyond:
            raise InputError(f"model {info.name!r} is a single network, which has no {' and no '.join(beyond)}: ask an ensemble")
        return ("logits",)
    missing = [name for name in asked if name not in info.outputs and name != "entropy"]
    if missing:
        raise InputError(f"model {info.name!r} has no output {', '.join(missing)}: it has {', '.join(info.outputs)}")
    if "entropy" in asked and "entropy" not in info.outputs:
        return tuple(dict.fromkeys("probabilities" if name == "entropy" else name for name in asked))
    return asked
