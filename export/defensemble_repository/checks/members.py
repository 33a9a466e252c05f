"""Whether the members of an ensemble can be averaged: what each takes and gives, and whether images, classes and labels are the same."""

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

_MEMBER = "a member takes images FP32 [C, H, W] and gives logits FP32 [K]"


def check_members(found: Inspection, ensemble: str, votes: Sequence[tuple[str, int]], averaged: Sequence[str]) -> set[str]:
    """Find what keeps `votes` (model, version) from being averaged by the models `averaged`.

    Returns the names of members that are wrong in themselves: how they are wired need not be reported too.
    """
    config = found.config(ensemble)
    assert config is not None
    members = {model: member for model, _ in votes if found.has(model) and (member := found.config(model)) is not None}
    bad = {model for model, member in members.items() if not _is_member(found, ensemble, model, member)}
    good = {model: member for model, member in members.items() if model not in bad}
    # Dims that no tensor can have are reported where the wiring is checked.
    declared = next((list(one.dims) for one in config.input if one.name == "images" and one.dims and 0 not in one.dims), None)
    images = {model: list(member.input[0].dims) for model, member in good.items()}
    bad |= _same(found, ensemble, images, declared, "images", f"'{ensemble}'")
    classes = {model: next([*one.dims] for one in member.output if one.name == "logits") for model, member in good.items()}
    averages = [found.config(model) for model in averaged if found.has(model)]
    taken = next((list(one.input[0].dims) for one in averages if one is not None and len(one.input) > 0), None)
    bad |= _same(found, ensemble, classes, taken, "logits", "what averages them")
    _check_labels(found, ensemble, config, {model: member for model, member in good.items() if model not in bad})
    _say_precisions(found, ensemble, votes, members)
    return bad


def _is_member(found: Inspection, ensemble: str, model: str, config: schema.ModelConfig) -> bool:
    path = f"{model}/{CONFIG_FILE}"
    if not config.backend and not config.platform:
        return False  # which is reported as such
    inputs, outputs = (
        [(tensor.name, tensor.data_type, len(tensor.dims), min(tensor.dims, default=0) > 0) for tensor in tensors]
        for tensors in (config.input, config.output)
    )
    if inputs != [("images", schema.TYPE_FP32, 3, True)] or ("logits", schema.TYPE_FP32, 1, True) not in outputs:
        text = f"takes {format_tensors(config.input)} and gives {format_tensors(config.output)}, but {_MEMBER}: correct its configuration"
        field = "input" if inputs != [("images", schema.TYPE_FP32, 3, True)] else "output"
        found.add_finding(model, f"{text}, or {found.removal_advice(ensemble, model)}", path, field)
        return False
    if not 1 <= config.max_batch_size <= MAX_BATCH_SIZE:
        text = f"says max_batch_size: {config.max_batch_size}, expected 1 to {MAX_BATCH_SIZE}: correct it"
        found.add_finding(model, f"{text}, or {found.removal_advice(ensemble, model)}", path, "max_batch_size")
        return False
    return True


def _same(found: Inspection, ensemble: str, dims: Mapping[str, list[int]], expected: list[int] | None, tensor: str, whose: str) -> set[str]:
    """Find the members whose `tensor` is not as `expected`: all of them in one finding, where they agree with each other."""
    if not dims:
        return set()
    if expected is None:
        expected, whose = list(Counter(map(tuple, dims.values())).most_common(1)[0][0]), "most of them"
    wanted = expected
    other = {model: size for model, size in dims.items() if not same_shape(size, wanted)}
    kind, what = ("input", "image size") if tensor == "images" else ("output", "number of classes")
    if len(other) == len(dims) and len({*map(tuple, dims.values())}) == 1:
        size = next(iter(dims.values()))
        text = f"all members have {tensor} {size}, {whose} {expected}: make the {what} the same"
        found.add_finding(ensemble, text, f"{ensemble}/{CONFIG_FILE}", *(("input", "dims") if tensor == "images" else ()))
        return set(other)
    for model, size in other.items():
        text = f"its {tensor} are {size}, those of {whose} {expected}: all members need the same {what}; export it again as the others are"
        text += f", or {found.removal_advice(ensemble, *other)}"
        found.add_finding(model, text, f"{model}/{CONFIG_FILE}", (kind, "name", tensor), "dims")
    return set(other)


def _check_labels(found: Inspection, ensemble: str, config: schema.ModelConfig, members: Mapping[str, schema.ModelConfig]) -> None:
    """Whether all label files say the same: an answer's first class is everybody's first class."""
    named = {model: _labels(found, model, member, "logits") for model, member in members.items()}
    told = {model: labels for model, labels in named.items() if labels is not None}
    for model, (path, labels) in told.items():
        classes = next(tensor.dims[0] for tensor in members[model].output if tensor.name == "logits")
        if len(labels) != classes:
            found.add_finding(
                model, f"names {len(labels)} classes, and its logits are {classes}: write one name a line, in their order", path
            )
    told = {model: one for model, one in told.items() if not found.has_error(model, one[0])}
    own = _labels(found, ensemble, config, "probabilities")
    if not told:
        return
    agreed = len({labels for _, labels in told.values()}) == 1
    if own is not None and agreed:
        _, expected = next(iter(told.values()))
        _say_other_labels(found, ensemble, *own, expected, "its members")
        return
    reference, expected = ("the ensemble", own[1]) if own is not None else (next(iter(told)), next(iter(told.values()))[1])
    for model, (path, labels) in told.items():
        _say_other_labels(found, model, path, labels, expected, reference)


def _say_other_labels(found: Inspection, model: str, path: str, labels: tuple[str, ...], expected: tuple[str, ...], whose: str) -> None:
    if labels == expected:
        return
    line = next((number for number, pair in enumerate(zip(labels, expected, strict=False), 1) if pair[0] != pair[1]), None)
    if line is None:
        text = f"names {len(labels)} classes, {whose} {len(expected)}"
    else:
        text = f"class {line} is {labels[line - 1]!r}, that of {whose} is {expected[line - 1]!r}"
    found.add_finding(model, f"{text}: make the files equal, in the order of the logits", path, line=line)


def _labels(found: Inspection, model: str, config: schema.ModelConfig, output: str) -> tuple[str, tuple[str, ...]] | None:
    """The path of a model's class names, and these; None where there are none."""
    name = next((tensor.label_filename for tensor in config.output if tensor.name == output), "") or LABELS_FILE
    if name != PurePosixPath(name).name or name == ".." or "\0" in name:
        return None
    content = found.content(f"{model}/{name}")
    return None if content is None else (f"{model}/{name}", class_names_from_labels(content))


def _say_precisions(found: Inspection, ensemble: str, votes: Sequence[tuple[str, int]], members: Mapping[str, schema.ModelConfig]) -> None:
    said = {(model, version): parameter(members.get(model), f"precision.{version}") for model, version in votes}
    known = {vote: precision for vote, precision in said.items() if precision is not None}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{model}@{version} {precision}" for (model, version), precision in known.items())
        text = f"its members compute in different precisions, which is allowed: {listed}"
        found.add_finding(ensemble, text, f"{ensemble}/{CONFIG_FILE}", "ensemble_scheduling", is_error=False)
