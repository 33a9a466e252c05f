"""Findings of the checks, and the line of a configuration that a finding is about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# A step of the path to a field: the name of the field, (name, index) of a repeated field, or (name, key field, value of the key field).
Step = str | tuple[str, int] | tuple[str, str, str]
_TOKEN = re.compile(r"""\s+|\#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[{}<>\[\]:;,]|[^\s{}<>\[\]:;,"'\#]+""")


@dataclass(frozen=True)
class Finding:
    """A problem of a model: what is wrong, what is expected and how to fix it.

    `file` and `line` (from 1) locate it, if known. `is_error` is False for a remark. `blocked_model` is the model that cannot be served
    because of it, which can be an ensemble that contains `model`. `unchecked` is true if files of `model` were not checked, so that it may
    have more problems.

    Example:
        >>> print(Finding("alpha", "max_batch_size is 0; expected 1 to 4096", Path("alpha/config.pbtxt"), line=3))
        alpha/config.pbtxt:3: max_batch_size is 0; expected 1 to 4096
    """

    model: str
    text: str
    file: Path | None = None
    line: int | None = None
    is_error: bool = True
    blocked_model: str = ""
    unchecked: bool = False

    def __str__(self) -> str:
        if self.file is None:
            return f"{self.model}: {self.text}"
        return f"{self.file}: {self.text}" if self.line is None else f"{self.file}:{self.line}: {self.text}"


@dataclass(frozen=True)
class ConfigProblem:
    """A problem of a configuration, with the path to the field.

    Example:
        ConfigProblem("max_batch_size is -1; expected 0 or more", ("max_batch_size",))
    """

    text: str
    path: tuple[Step, ...] = ()


def parameter_path(key: str) -> tuple[Step, ...]:
    """Return the path to the value of a parameter."""
    return (("parameters", "key", key), "value", "string_value")


@dataclass
class _Field:
    name: str
    line: int
    value: str = ""
    fields: list[_Field] = field(default_factory=list)


class FieldLocator:
    """Finds the lines of the fields in a valid `config.pbtxt`, which its parser does not report.

    Example:
        FieldLocator(path.read_text()).line_of("ensemble_scheduling", ("step", 0), "model_version")
    """

    def __init__(self, text: str) -> None:
        self._fields = _parse_message(_tokens(text))

    def line_of(self, *path: Step) -> int | None:
        """Return the line (from 1) of a field, or of its last enclosing field that exists, or None if there is none."""
        fields = self._fields_along(path)
        return fields[-1].line if fields else None

    def has(self, *path: Step) -> bool:
        """Return whether a field is written, even with its default value."""
        return len(self._fields_along(path)) == len(path)

    def _fields_along(self, path: tuple[Step, ...]) -> list[_Field]:
        """Return the fields along a path, up to the first one that is missing."""
        fields: list[_Field] = []
        for step in path:
            following = _find_field(fields[-1].fields if fields else self._fields, step)
            if following is None:
                break
            fields.append(following)
        return fields


def _find_field(fields: list[_Field], step: Step) -> _Field | None:
    if isinstance(step, str):
        step = (step, 0)
    candidates = [candidate for candidate in fields if candidate.name == step[0]]
    if len(step) == 2:
        return candidates[step[1]] if step[1] < len(candidates) else None
    _, key, value = step
    return next((parent for parent in candidates if any((child.name, child.value) == (key, value) for child in parent.fields)), None)


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line = 1
    for match in _TOKEN.finditer(text):
        token = match.group()
        if not token[0].isspace() and token[0] != "#":
            yield token, line
        line += token.count("\n")


def _parse_message(tokens: Iterator[tuple[str, int]]) -> list[_Field]:
    """Return the fields up to the closing bracket or the end. `name: [...]` gives one field for each element."""
    fields: list[_Field] = []
    name, in_list = _Field("", 0), False
    for token, line in tokens:
        if token in ("}", ">"):
            break
        if token == "[":
            in_list = True
        elif token == "]":
            name, in_list = _Field("", 0), False
        elif token in ("{", "<"):
            fields.append(_Field(name.name, line if in_list else name.line, fields=_parse_message(tokens)))
            name = name if in_list else _Field("", 0)
        elif not name.name and token[0] in "\"'" and fields:
            fields[-1].value += _unquoted(token)  # the next part of a string that is written in parts
        elif not name.name and token not in (":", ";", ","):
            name = _Field(token, line)
        elif token not in (":", ";", ","):
            fields.append(_Field(name.name, line if in_list else name.line, _unquoted(token)))
            name = name if in_list else _Field("", 0)
    return fields


def _unquoted(token: str) -> str:
    return token[1:-1] if token[0] in "\"'" else token
