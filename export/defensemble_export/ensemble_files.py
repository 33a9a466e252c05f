"""The files of an ensemble: its averaging models, under the names of what they compute, and its own, which come last."""

from __future__ import annotations

import hashlib

from defensemble_repository.configs import averaging_config, ensemble_config, uncertainty_outputs
from defensemble_repository.ensemble import Ensemble
from defensemble_repository.names import CONFIG_FILE, LABELS_FILE, MODEL_FILE, RESERVED
from defensemble_repository.pbtxt import pbtxt_from_config, schema
from defensemble_repository.view import Files

from .averaging import average_onnx, uncertainty_onnx

# Triton reads every folder as a model; an ensemble's version folder is empty by nature, and archives drop empty folders.
PLACEHOLDER = "placeholder"
PLACEHOLDER_TEXT = b"Triton wants a version folder; an ensemble has nothing to put there.\n"


def ensemble_files(
    files: Files,
    ensemble: Ensemble,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    max_batch_size: int,
    labels: bytes | None,
) -> dict[str, bytes]:
    """Compute the files of ``ensemble`` (path relative to the repository, to bytes), in the order in which they are to appear.

    Averaging models that ``files`` hold already are left out: named by what they compute, they are these, and may be serving. An existing
    configuration of the ensemble keeps what does not follow from who votes (``ensemble_config``). ``labels`` is the content of its file of
    class names.
    """
    average_model, uncertainty_model = averaging_models(ensemble, num_classes, max_batch_size)
    config = ensemble_config(
        ensemble,
        average_model=average_model,
        uncertainty_model=uncertainty_model,
        input_shape=input_shape,
        num_classes=num_classes,
        max_batch_size=max_batch_size,
        existing=files.config(ensemble.name) if files.has(ensemble.name) else None,
    )
    planned = averaging_files(files, ensemble, config, num_classes=num_classes, max_batch_size=max_batch_size)
    return planned | {
        f"{ensemble.name}/1/{PLACEHOLDER}": PLACEHOLDER_TEXT,
        **({} if labels is None else {f"{ensemble.name}/{LABELS_FILE}": labels}),
        f"{ensemble.name}/{CONFIG_FILE}": pbtxt_from_config(config),
    }


def averaging_models(ensemble: Ensemble, num_classes: int, max_batch_size: int) -> tuple[str, str]:
    """The names of the models that give an ensemble's ``probabilities``, and its other outputs: what they compute."""
    digest = ensemble.digest(num_classes, max_batch_size)
    average, uncertainty = (f"{prefix}{digest}" for prefix in RESERVED)
    return average, uncertainty


def averaging_files(
    files: Files, ensemble: Ensemble, config: schema.ModelConfig, *, num_classes: int, max_batch_size: int
) -> dict[str, bytes]:
    """Compute the files of the averaging models that ``config``, that of ``ensemble``, has steps for, and that ``files`` do not hold."""
    average_model, uncertainty_model = averaging_models(ensemble, num_classes, max_batch_size)
    graphs = {
        average_model: (average_onnx, [("probabilities", [num_classes])]),
        uncertainty_model: (uncertainty_onnx, uncertainty_outputs(len(ensemble.members), num_classes)),
    }
    planned = {}
    for name in (step.model_name for step in config.ensemble_scheduling.step if step.model_name in graphs):
        if files.has(name):
            continue
        graph, outputs = graphs[name]
        onnx = graph(ensemble, num_classes)
        described = averaging_config(
            name, ensemble, outputs, num_classes=num_classes, max_batch_size=max_batch_size, digest=hashlib.sha256(onnx).hexdigest()
        )
        planned[f"{name}/1/{MODEL_FILE}"] = onnx
        planned[f"{name}/{CONFIG_FILE}"] = pbtxt_from_config(described)
    return planned
