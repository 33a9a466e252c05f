"""Check that the inputs, outputs and names of averaging models match their parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from ..configs import averaging_outputs
from ..ensemble import AVERAGES, Ensemble, Member, averaging_model_name, two_model_names
from ..errors import EnsembleError
from ..names import MODEL_FILE
from ..pbtxt import schema
from ..reader import members_from_text, parameter
from .finding import parameter_path
from .inspection import APPLY_ADVICE, Inspection
from .model import format_tensors


def check_averages(inspection: Inspection, ensemble: str, models: Sequence[str]) -> None:
    """Check the averaging models of an ensemble, and that they agree.

    A missing parameter only prevents edits. The graph determines the answers, so they stay correct.

    Args:
        inspection: Receives the findings.
        ensemble: The name of the ensemble.
        models: The names of its averaging models.
    """
    ensembles = {}
    for model in models:
        config = inspection.config(model)
        if config is None:
            continue
        for path in inspection.profiles(model):
            inspection.add_finding(model, "an averaging model always runs on a CPU and must have no profile. Remove this file.", path)
        described = _read_parameters(inspection, ensemble, model, config)
        if described is not None and _check_interface(inspection, ensemble, model, config, described):
            ensembles[model] = described
    if len(ensembles) > 1:
        (first, expected), *others = ensembles.items()
        for model, other in others:
            if (other.average, other.weights) != (expected.average, expected.weights):
                text = f"it averages {_describe(other)}, but '{first}' averages {_describe(expected)}: "
                text += f"the steps of '{ensemble}' mix two ensembles. Write one model with `defensemble ensemble reload {ensemble}`."
                inspection.add_finding(model, text, inspection.config_path(model), *parameter_path("weights"))


def _read_parameters(inspection: Inspection, ensemble: str, model: str, config: schema.ModelConfig) -> Ensemble | None:
    """Return the ensemble that an averaging model's parameters describe, or None if they are not valid, which adds findings."""
    count_before = len(inspection.findings)
    values = {key: parameter(config, key) for key in ("average", "weights", "members")}
    path = inspection.config_path(model)
    for key, value in values.items():
        if value is None:
            text = f"parameter {key} is missing. Put it back, or {inspection.recovery_advice(ensemble)}."
            inspection.add_finding(model, text, path, is_error=inspection.for_edit)
    if values["average"] is not None and values["average"] not in AVERAGES:
        text = f"parameter average is {values['average']!r}; expected {' or '.join(AVERAGES)}. Correct it."
        inspection.add_finding(model, text, path, *parameter_path("average"))
    try:
        members = members_from_text(values["members"] or "[]")
    except ValueError:
        members = []
        text = f'parameter members is {_short(values["members"])}; expected a JSON list of "NAME@VERSION". Correct it.'
        inspection.add_finding(model, text, path, *parameter_path("members"))
    weights = _parse_list(values["weights"] or "[]")
    if weights is None:
        text = f"parameter weights is {_short(values['weights'])}; expected a JSON list with one number for each member. Correct it."
        inspection.add_finding(model, text, path, *parameter_path("weights"))
    for index, weight in enumerate(weights or ()):
        if not _is_weight(weight):
            name = f"of '{members[index][0]}'" if index < len(members) else f"{index + 1}"
            # Commands that edit single members cannot read such parameters.
            text = f"weight {name} is {json.dumps(weight)[:40]}; expected a finite number above 0. Correct it, or {APPLY_ADVICE}."
            inspection.add_finding(model, text, path, *parameter_path("weights"))
    if len(inspection.findings) > count_before:
        return None
    if len(members) != len(weights or ()):
        text = f"the parameters have {len(weights or ())} weights for {len(members)} members; expected one for each. Correct them."
        inspection.add_finding(model, text, path, *parameter_path("weights"))
        return None
    try:
        pairs = [(*member, weight) for member, weight in zip(members, weights or (), strict=True) if isinstance(weight, (int, float))]
        return Ensemble(ensemble, tuple(Member(*pair) for pair in pairs), values["average"] or "")
    except EnsembleError as error:
        inspection.add_finding(model, f"its parameters do not describe an ensemble: {error}", path, *parameter_path("members"))
        return None


def _check_interface(inspection: Inspection, ensemble: str, model: str, config: schema.ModelConfig, described: Ensemble) -> bool:
    """Return whether a model has the inputs, outputs, name and graph of the described ensemble, and add findings if not.

    In the older form with two models, only the digest identifies the graph.
    """
    path = inspection.config_path(model)
    reload = f"`defensemble ensemble reload {ensemble}`"
    dims = list(config.input[0].dims) if len(config.input) else []
    if len(dims) != 1 or dims[0] < 1:
        text = f"its inputs are {format_tensors(config.input)}; expected logits_0 FP32 [classes] and so on. Put them back."
        inspection.add_finding(model, text, path, "input")
        return False
    classes = int(dims[0])
    name = averaging_model_name(described, classes, int(config.max_batch_size))
    two_names = two_model_names(described, classes, int(config.max_batch_size))
    outputs = averaging_outputs(len(described.members), classes)
    computed = {name: outputs, two_names[0]: outputs[:1], two_names[1]: outputs[1:]}.get(model)
    if computed is None:
        text = f"its parameters were edited: the name for {_describe(described)}, max_batch_size {config.max_batch_size} is {name}"
        inspection.add_finding(model, f"{text}. Generate the model again with {reload}.", path, *parameter_path("weights"))
        return False
    inputs = [(f"logits_{index}", [classes]) for index in range(len(described.members))]
    for kind, tensors, required in (("input", config.input, inputs), ("output", config.output, computed)):
        actual, expected = format_tensors(tensors), ", ".join(f"{tensor} FP32 {sizes}" for tensor, sizes in required)
        if actual != expected:
            inspection.add_finding(model, f"its {kind}s are {actual}; expected {expected}. Put them back.", path, kind)
            return False
    if model in two_names:
        if parameter(config, "sha256.1") is None:
            text = "parameter sha256.1, which identifies its file, is missing"
            inspection.add_finding(model, f"{text}. Generate the model again with {reload}.", path)
    elif inspection.is_generated is not None:
        file = f"{model}/1/{MODEL_FILE}"
        content = inspection.content(file)
        if content is not None and not inspection.has_error(model, file) and not inspection.is_generated(content, described, classes):
            text = f"this file was changed: it is not the graph for the parameters ({_describe(described)})"
            inspection.add_finding(model, f"{text}. Generate it again with {reload}.", file)
    return not inspection.has_error(model)


def _describe(ensemble: Ensemble) -> str:
    members = ", ".join(f"{member.model}@{member.version} with weight {member.weight:g}" for member in ensemble.members)
    return f"{ensemble.average} of {members}"


def _parse_list(text: str) -> list[object] | None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, list) else None


def _is_weight(weight: object) -> bool:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        return False
    try:
        return math.isfinite(weight) and weight > 0
    except OverflowError:  # The integer is too large for a float.
        return False


def _short(text: str | None) -> str:
    return repr((text or "")[:80])
