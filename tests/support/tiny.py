"""Tiny ONNX networks and repositories, written without torch, with an independent numpy answer for each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from defensemble_export import ExportedMember

Array = np.ndarray[Any, Any]
CLASSES = ("circle", "square", "triangle")
SHAPE = (1, 4, 4)


def weights(seed: int, shape: Sequence[int] = SHAPE, classes: int = 3) -> Array:
    """The matrix of the network `linear_onnx(seed)`."""
    return np.random.default_rng(seed).normal(size=(int(np.prod(shape)), classes)).astype(np.float32)


def linear_onnx(seed: int, shape: Sequence[int] = SHAPE, classes: int = 3, scale: float = 1.0) -> bytes:
    """A linear classifier: `images` (N,C,H,W) to `logits` (N,K)."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(weights(seed, shape, classes) * np.float32(scale), "weights")],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    content: bytes = model.SerializeToString()
    return content


def logits(seed: int, images: Array) -> Array:
    """What `linear_onnx(seed)` answers, by numpy in float64."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    answer: Array = flat @ weights(seed, images.shape[1:]).astype(np.float64)
    return answer


def softmax(values: Array) -> Array:
    """Over the last axis."""
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    answer: Array = powers / powers.sum(axis=-1, keepdims=True)
    return answer


def images(count: int, seed: int = 0, shape: Sequence[int] = SHAPE) -> Array:
    """Random images (N,C,H,W), float32 in [0, 1)."""
    return np.random.default_rng(seed).random((count, *shape), np.float32)


def member(name: str, seed: int = 0, **other: object) -> ExportedMember:
    """The network `linear_onnx(seed)` as a member of a repository."""
    from defensemble_export import ExportedMember

    values = {
        "name": name,
        "onnx": linear_onnx(seed),
        "input_shape": SHAPE,
        "num_classes": len(CLASSES),
        "class_names": CLASSES,
        "mask_digest": f"masks-{seed}",
    } | other
    return ExportedMember(**values)  # type: ignore[arg-type]


def write_repository(
    folder: Path,
    seeds: Mapping[str, int] | None = None,
    *,
    ensemble: str | None = "ensemble",
    average: str = "probabilities",
    weight: Mapping[str, float] | None = None,
    max_batch_size: int = 8,
) -> Path:
    """A repository of linear members (name to seed; by default `alpha` 1 and `beta` 2) and an ensemble of them."""
    from defensemble_export import planned_files, write_files

    seeds = seeds or {"alpha": 1, "beta": 2}
    members = [member(name, seed) for name, seed in seeds.items()]
    write_files(folder, planned_files(folder, members, ensemble=ensemble, average=average, weights=weight, max_batch_size=max_batch_size))
    return folder


def write_second_version(folder: Path, name: str, seed: int) -> None:
    """Export the next version of a member of `write_repository`; the ensemble keeps the one that it pins."""
    from defensemble_export import ExportedMember, planned_files, write_files

    new = ExportedMember(name, linear_onnx(seed), SHAPE, len(CLASSES), CLASSES, f"new-digest-of-{name}")
    write_files(folder, planned_files(folder, [new], ensemble=None, replace=True))


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below one, files with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def edit_config(folder: Path, model: str, **values: object) -> None:
    """Change fields of a model's configuration in the repository `folder`, as by hand."""
    from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config

    path = folder / model / "config.pbtxt"
    config = config_from_pbtxt(path.read_text(), model)
    for name, value in values.items():
        setattr(config, name, value)
    path.write_bytes(pbtxt_from_config(config))


def leftovers(repository: Path) -> list[str]:
    """Command lines of all processes that still name a repository."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if f"--model-repository={repository}" in command:
                found.append(command)
    return found
