"""Check that the members of an ensemble can be averaged: that their inputs, outputs, classes and labels agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from ..labels import class_names_from_labels
from ..names import CONFIG_FILE, LABELS_FILE
from ..pbtxt import schema
from ..reader import MAX_BATCH_SIZE, parameter
from .inspection import Inspection
from .model import format_tensors
from .wiring import same_shape

_MEMBER_TENSORS = "images FP32 [C, H, W] and logits FP32 [K]"


def check_members(inspection: Inspection, ensemble: str, members: Sequence[tuple[str, int]], averages: Sequence[str]) -> set[str]:
    """Find what prevents members from being averaged.

    Args:
        inspection: Receives the findings.
        ensemble: The name of the ensemble.
        members: (model, version) of each member.
        averages: The names of the averaging models.

    Returns:
        The names of models with problems of their own, whose wiring need not be checked.
    """
    config = inspection.config(ensemble)
    assert config is not None
    configs = {model: known for model, _ in members if inspection.has(model) and (known := inspection.config(model)) is not None}
    bad = {model for model, member in configs.items() if not _is_member(inspection, ensemble, model, member)}
    good = {model: member for model, member in configs.items() if model not in bad}
    # The check of the wiring reports dims that no tensor can have.
    declared = next(
        (list(tensor.dims) for tensor in config.input if tensor.name == "images" and tensor.dims and 0 not in tensor.dims), None
    )
    images = {model: list(member.input[0].dims) for model, member in good.items()}
    bad |= _compare_dims(inspection, ensemble, images, declared, "images", f"'{ensemble}'")
    classes = {model: next([*tensor.dims] for tensor in member.output if tensor.name == "logits") for model, member in good.items()}
    average_configs = [inspection.config(model) for model in averages if inspection.has(model)]
    averaged = next((list(known.input[0].dims) for known in average_configs if known is not None and len(known.input) > 0), None)
    bad |= _compare_dims(inspection, ensemble, classes, averaged, "logits", "the averaging model")
    _check_labels(inspection, ensemble, config, {model: member for model, member in good.items() if model not in bad})
    _check_precisions(inspection, ensemble, members, configs)
    return bad


def _is_member(inspection: Inspection, ensemble: str, model: str, config: schema.ModelConfig) -> bool:
    """Return whether a model has the interface of a member, and add a finding if not."""
    path = f"{model}/{CONFIG_FILE}"
    if not config.backend and not config.platform:
        return False  # Another finding reports it.
    inputs, outputs = (
        [(tensor.name, tensor.data_type, len(tensor.dims), min(tensor.dims, default=0) > 0) for tensor in tensors]
        for tensors in (config.input, config.output)
    )
    has_images = inputs == [("images", schema.TYPE_FP32, 3, True)]
    if not has_images or ("logits", schema.TYPE_FP32, 1, True) not in outputs:
        text = f"its inputs are {format_tensors(config.input)} and its outputs are {format_tensors(config.output)}; a member must have "
        text += f"{_MEMBER_TENSORS}. Correct the configuration, or {inspection.removal_advice(ensemble, model)}."
        inspection.add_finding(model, text, path, "output" if has_images else "input")
        return False
    if not 1 <= config.max_batch_size <= MAX_BATCH_SIZE:
        text = f"has max_batch_size: {config.max_batch_size}; expected 1 to {MAX_BATCH_SIZE}"
        text += f". Correct it, or {inspection.removal_advice(ensemble, model)}."
        inspection.add_finding(model, text, path, "max_batch_size")
        return False
    return True


def _compare_dims(
    inspection: Inspection, ensemble: str, dims: Mapping[str, list[int]], expected: list[int] | None, tensor: str, owner: str
) -> set[str]:
    """Return the members whose `tensor` does not have the `expected` dims, those of `owner`. If they agree, add only one finding."""
    if not dims:
        return set()
    if expected is None:
        expected, owner = list(Counter(map(tuple, dims.values())).most_common(1)[0][0]), "most of them"
    reference = expected
    different = {model: size for model, size in dims.items() if not same_shape(size, reference)}
    kind, quantity = ("input", "image size") if tensor == "images" else ("output", "number of classes")
    if len(different) == len(dims) and len({*map(tuple, dims.values())}) == 1:
        size = next(iter(dims.values()))
        text = f"{tensor} of all members are {size}, but those of {owner} are {expected}. Use one {quantity}."
        inspection.add_finding(ensemble, text, f"{ensemble}/{CONFIG_FILE}", *(("input", "dims") if tensor == "images" else ()))
        return set(different)
    for model, size in different.items():
        text = f"its {tensor} are {size}, but those of {owner} are {expected}: all members need the same {quantity}. "
        text += f"Export the model again, or {inspection.removal_advice(ensemble, *different)}."
        inspection.add_finding(model, text, f"{model}/{CONFIG_FILE}", (kind, "name", tensor), "dims")
    return set(different)


def _check_labels(inspection: Inspection, ensemble: str, config: schema.ModelConfig, members: Mapping[str, schema.ModelConfig]) -> None:
    """Check that all labels files agree, because the first class of every member must be the same."""
    known = {model: read for model, member in members.items() if (read := _read_labels(inspection, model, member, "logits"))}
    for model, (path, labels) in known.items():
        classes = next(tensor.dims[0] for tensor in members[model].output if tensor.name == "logits")
        if len(labels) != classes:
            text = f"has {len(labels)} classes, but the model has {classes} logits. Write one name per line, in the order of the logits."
            inspection.add_finding(model, text, path)
    known = {model: read for model, read in known.items() if not inspection.has_error(model, read[0])}
    own = _read_labels(inspection, ensemble, config, "probabilities")
    if not known:
        return
    first, (_, expected) = next(iter(known.items()))
    if own is not None and len({labels for _, labels in known.values()}) == 1:
        _compare_labels(inspection, ensemble, *own, expected, "its members")
        return
    owner = first
    if own is not None:
        owner, expected = "the ensemble", own[1]
    for model, (path, labels) in known.items():
        _compare_labels(inspection, model, path, labels, expected, owner)


def _compare_labels(inspection: Inspection, model: str, path: str, labels: tuple[str, ...], expected: tuple[str, ...], owner: str) -> None:
    if labels == expected:
        return
    line = next((number for number, pair in enumerate(zip(labels, expected, strict=False), 1) if pair[0] != pair[1]), None)
    if line is None:
        text = f"has {len(labels)} class names, but {owner} has {len(expected)}"
    else:
        text = f"class {line} is {labels[line - 1]!r}, but that of {owner} is {expected[line - 1]!r}"
    inspection.add_finding(model, f"{text}. Make the files equal, in the order of the logits.", path, line=line)


def _read_labels(inspection: Inspection, model: str, config: schema.ModelConfig, output: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the path of a model's labels file and its class names, or None if it has none."""
    name = next((tensor.label_filename for tensor in config.output if tensor.name == output), "") or LABELS_FILE
    if name != PurePosixPath(name).name or name == ".." or "\0" in name:
        return None
    content = inspection.content(f"{model}/{name}")
    return None if content is None else (f"{model}/{name}", class_names_from_labels(content))


def _check_precisions(
    inspection: Inspection, ensemble: str, members: Sequence[tuple[str, int]], configs: Mapping[str, schema.ModelConfig]
) -> None:
    """Add a remark if members have different precisions, which is allowed."""
    precisions = {(model, version): parameter(configs.get(model), f"precision.{version}") for model, version in members}
    known = {member: precision for member, precision in precisions.items() if precision is not None}
    if len(set(known.values())) > 1:
        joined = ", ".join(f"{model}@{version} {precision}" for (model, version), precision in known.items())
        text = f"its members have different precisions, which is allowed: {joined}"
        inspection.add_finding(ensemble, text, f"{ensemble}/{CONFIG_FILE}", "ensemble_scheduling", is_error=False)
