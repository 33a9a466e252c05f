"""Whether the averaging models of an ensemble have the inputs, outputs and name of what their parameters say; no graph is opened."""

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


def check_averages(found: Inspection, ensemble: str, models: Sequence[str]) -> None:
    """Find what is wrong with the averaging models, `models`, of an ensemble: each in itself, then with each other.

    A parameter that is missing stops edits alone: the answers are those of the graph, and stay right.
    """
    stated = {}
    for model in models:
        config = found.config(model)
        if config is None:
            continue
        for path in found.profiles(model):
            found.add_finding(model, "an averaging model runs on a CPU everywhere, and must have no profile file: remove this one", path)
        votes = _stated(found, ensemble, model, config)
        if votes is not None and _check_form(found, ensemble, model, config, votes):
            stated[model] = votes
    if len(stated) > 1:
        (first, votes), *others = stated.items()
        for model, other in others:
            if (other.average, other.weights) != (votes.average, votes.weights):
                text = f"it measures for {_said(other)}, but '{first}' averages {_said(votes)}: the steps of '{ensemble}' mix two ensembles"
                text += f"; `defensemble ensemble reload {ensemble}` writes one model in their place"
                found.add_finding(model, text, found.config_path(model), *parameter_path("weights"))


def _stated(found: Inspection, ensemble: str, model: str, config: schema.ModelConfig) -> Ensemble | None:
    """The votes that an averaging model's parameters say; None where they say none, which is a finding."""
    before = len(found.findings)
    said = {key: parameter(config, key) for key in ("average", "weights", "members")}
    path = found.config_path(model)
    for key, value in said.items():
        if value is None:
            text = f"lacks the parameter {key}, from which it is generated: put it back, or {found.recovery_advice(ensemble)}"
            found.add_finding(model, text, path, is_error=found.for_edit)
    if said["average"] is not None and said["average"] not in AVERAGES:
        text = f"the parameter average is {said['average']!r}, expected {' or '.join(AVERAGES)}: correct it"
        found.add_finding(model, text, path, *parameter_path("average"))
    try:
        votes = members_from_text(said["members"] or "[]")
    except ValueError:
        votes = []
        text = f'the parameter members is {_short(said["members"])}, expected a JSON list of "NAME@VERSION": correct it'
        found.add_finding(model, text, path, *parameter_path("members"))
    weights = _listed(said["weights"] or "[]")
    if weights is None:
        text = f"the parameter weights is {_short(said['weights'])}, expected a JSON list with a number for each member: correct it"
        found.add_finding(model, text, path, *parameter_path("weights"))
    for index, weight in enumerate(weights or ()):
        if not _is_weight(weight):
            name = f"of '{votes[index][0]}'" if index < len(votes) else f"{index + 1}"
            # No edit of single votes reads such parameters.
            text = f"the weight {name} is {json.dumps(weight)[:40]}, expected a finite number above 0: correct it, or {APPLY_ADVICE}"
            found.add_finding(model, text, path, *parameter_path("weights"))
    if len(found.findings) > before:
        return None
    if len(votes) != len(weights or ()):
        text = f"the parameters say {len(weights or ())} weights for {len(votes)} members, expected one for each: mend them"
        found.add_finding(model, text, path, *parameter_path("weights"))
        return None
    try:
        pairs = [(*vote, weight) for vote, weight in zip(votes, weights or (), strict=True) if isinstance(weight, (int, float))]
        return Ensemble(ensemble, tuple(Member(*pair) for pair in pairs), said["average"] or "")
    except EnsembleError as error:
        found.add_finding(model, f"its parameters say no ensemble: {error}", path, *parameter_path("members"))
        return None


def _check_form(found: Inspection, ensemble: str, model: str, config: schema.ModelConfig, votes: Ensemble) -> bool:
    """Whether a model has the inputs, outputs, name and graph of these votes; the graph of one of two models is judged by its digest."""
    path = found.config_path(model)
    reload = f"`defensemble ensemble reload {ensemble}`"
    dims = list(config.input[0].dims) if len(config.input) else []
    if len(dims) != 1 or dims[0] < 1:
        text = f"its inputs are {format_tensors(config.input)}, expected logits_0 FP32 [classes] and so on: put it back"
        found.add_finding(model, text, path, "input")
        return False
    classes = int(dims[0])
    named = averaging_model_name(votes, classes, int(config.max_batch_size))
    of_two = two_model_names(votes, classes, int(config.max_batch_size))
    outputs = averaging_outputs(len(votes.members), classes)
    given = {named: outputs, of_two[0]: outputs[:1], of_two[1]: outputs[1:]}.get(model)
    if given is None:
        text = f"it says {_said(votes)}, max_batch_size {config.max_batch_size}, which would be {named}: the parameters were edited by hand"
        found.add_finding(model, f"{text}: {reload} generates the model again under its new name", path, *parameter_path("weights"))
        return False
    inputs = [(f"logits_{index}", [classes]) for index in range(len(votes.members))]
    for kind, tensors, wanted in (("input", config.input, inputs), ("output", config.output, given)):
        mine, expected = format_tensors(tensors), ", ".join(f"{name} FP32 {sizes}" for name, sizes in wanted)
        if mine != expected:
            found.add_finding(model, f"its {kind}s are {mine}, expected {expected}: put them back", path, kind)
            return False
    if model in of_two:
        if parameter(config, "sha256.1") is None:
            found.add_finding(
                model, f"lacks the parameter sha256.1, by which its file is known: {reload} generates another model instead", path
            )
    elif found.is_generated is not None:
        file = f"{model}/1/{MODEL_FILE}"
        content = found.content(file)
        if content is not None and not found.has_error(model, file) and not found.is_generated(content, votes, classes):
            text = f"this file is not the graph that the parameters ({_said(votes)}) generate: it was changed"
            found.add_finding(model, f"{text}; {reload} generates it again", file)
    return not found.has_error(model)


def _said(votes: Ensemble) -> str:
    members = ", ".join(f"{vote.model}@{vote.version} with {vote.weight:g}" for vote in votes.members)
    return f"{votes.average} of {members}"


def _listed(text: str) -> list[object] | None:
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
    except OverflowError:  # an int that no float can hold
        return False


def _short(text: str | None) -> str:
    return repr((text or "")[:80])
