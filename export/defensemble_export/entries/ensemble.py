"""The files of an ensemble: its averaging model, named after what it computes, and its own files, which come last."""

from __future__ import annotations

import hashlib

from defensemble_repository.configs import OUTPUTS, Interface, averaging_config, ensemble_config
from defensemble_repository.ensemble import Ensemble, averaging_model_name
from defensemble_repository.names import AVERAGING_NAME, CONFIG_FILE, LABELS_FILE, MODEL_FILE
from defensemble_repository.pbtxt import pbtxt_from_config, schema
from defensemble_repository.preprocessing import PREPROCESSING, common_preprocessing
from defensemble_repository.reader import parameter
from defensemble_repository.view import RepositoryView

from ..graphs.averaging import average_onnx

# Triton needs a version folder in every model's folder. An ensemble has no files to put there, and archives drop empty folders.
PLACEHOLDER = "placeholder"
PLACEHOLDER_TEXT = b"Triton wants a version folder; an ensemble has nothing to put there.\n"


def ensemble_files(files: RepositoryView, ensemble: Ensemble, interface: Interface, labels: bytes | None) -> dict[str, bytes]:
    """Compute the files of `ensemble`, by path relative to the repository, in the order in which to write them.

    An averaging model that exists already is left out: its name says what it computes, and it may be serving. An existing configuration of
    the ensemble keeps everything that does not follow from its members (`ensemble_config`).

    Args:
        files: The repository.
        ensemble: The ensemble.
        interface: Its inputs and outputs.
        labels: The content of `labels.txt`; None for no such file.

    Raises:
        EnsembleError: The members have different preprocessing rules.
        ConfigError: A member's configuration cannot be read.
    """
    existing = files.config(ensemble.name) if files.has(ensemble.name) else None
    config = ensemble_config(ensemble, interface, preprocessing=members_preprocessing(files, ensemble), existing=existing)
    return averaging_files(files, ensemble, config, interface) | {
        f"{ensemble.name}/1/{PLACEHOLDER}": PLACEHOLDER_TEXT,
        **({} if labels is None else {f"{ensemble.name}/{LABELS_FILE}": labels}),
        f"{ensemble.name}/{CONFIG_FILE}": pbtxt_from_config(config),
    }


def members_preprocessing(files: RepositoryView, ensemble: Ensemble) -> str | None:
    """Return the parameter `preprocessing` that the members have in common; None if no member has it.

    Raises:
        EnsembleError: The members have different preprocessing rules.
    """
    return common_preprocessing({member.model: parameter(files.config(member.model), PREPROCESSING) for member in ensemble.members})


def uses_two_models(files: RepositoryView, name: str) -> bool:
    """Return whether an ensemble has two averaging models, the form of earlier versions, each of which computes some of the outputs."""
    models = {step.model_name for step in files.config(name).ensemble_scheduling.step}
    averaging = [files.config(model) for model in models if AVERAGING_NAME.fullmatch(model) and files.has(model)]
    return any({tensor.name for tensor in config.output} < set(OUTPUTS) for config in averaging)


def averaging_files(files: RepositoryView, ensemble: Ensemble, config: schema.ModelConfig, interface: Interface) -> dict[str, bytes]:
    """Compute the files of the averaging model of `ensemble`; empty if it exists or if `config` has no step for it.

    Args:
        files: The repository.
        ensemble: The ensemble.
        config: The ensemble's configuration.
        interface: The ensemble's inputs and outputs.
    """
    classes, batch = interface.num_classes, interface.max_batch_size
    name = averaging_model_name(ensemble, classes, batch)
    if files.has(name) or all(step.model_name != name for step in config.ensemble_scheduling.step):
        return {}
    onnx = average_onnx(ensemble, classes)
    described = averaging_config(ensemble, classes, batch, digest=hashlib.sha256(onnx).hexdigest())
    return {f"{name}/1/{MODEL_FILE}": onnx, f"{name}/{CONFIG_FILE}": pbtxt_from_config(described)}
