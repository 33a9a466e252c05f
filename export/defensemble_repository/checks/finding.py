"""One thing that is wrong in a repository, in plain words, and the line of a configuration that it is about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# A step on the way to a field: its name, (its name, which of them), or (its name, a field in it, what that says).
Step = str | tuple[str, int] | tuple[str, str, str]
_TOKEN = re.compile(r"""\s+|\#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[{}<>\[\]:;,]|[^\s{}<>\[\]:;,"'\#]+""")


@dataclass(frozen=True)
class Finding:
    """What is wrong with `model`, what was expected and how to mend it, with the file and the line (from 1) where one can be pointed at.

    `is_error` False marks a remark. `blocked_model` is the model that is not served because of it, which can be an ensemble
    of `model`. `unchecked` says that files of `model` were not looked at, so that nothing can be claimed of them.
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
    """What is wrong in a configuration, and the way to the field there."""

    text: str
    path: tuple[Step, ...] = ()


def parameter_path(key: str) -> tuple[Step, ...]:
    """The way to the value of a parameter."""
    return (("parameters", "key", key), "value", "string_value")


@dataclass
class _Field:
    name: str
    line: int
    value: str = ""
    fields: list[_Field] = field(default_factory=list)


class FieldLocator:
    """Where the fields of a valid `config.pbtxt` stand: its parser does not tell."""

    def __init__(self, text: str) -> None:
        self._fields = _message(_tokens(text))

    def of(self, *path: Step) -> int | None:
        """The line (from 1) of the field that `path` leads to, or of the last one on the way that is there; None where none is."""
        found = self._along(path)
        return found[-1].line if found else None

    def has(self, *path: Step) -> bool:
        """Whether the field that `path` leads to is written, with its default value too."""
        return len(self._along(path)) == len(path)

    def _along(self, path: tuple[Step, ...]) -> list[_Field]:
        """The fields on the way, up to the first one that is missing."""
        found: list[_Field] = []
        for step in path:
            one = _found(found[-1].fields if found else self._fields, step)
            if one is None:
                break
            found.append(one)
        return found


def _found(fields: list[_Field], step: Step) -> _Field | None:
    if isinstance(step, str):
        step = (step, 0)
    named = [one for one in fields if one.name == step[0]]
    if len(step) == 2:
        return named[step[1]] if step[1] < len(named) else None
    _, key, said = step
    return next((one for one in named if any((inner.name, inner.value) == (key, said) for inner in one.fields)), None)


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line = 1
    for match in _TOKEN.finditer(text):
        token = match.group()
        if not token[0].isspace() and token[0] != "#":
            yield token, line
        line += token.count("\n")


def _message(tokens: Iterator[tuple[str, int]]) -> list[_Field]:
    """The fields up to the closing bracket or the end; `name: [...]` gives one field for each element."""
    fields: list[_Field] = []
    name, listed = _Field("", 0), False
    for token, line in tokens:
        if token in ("}", ">"):
            break
        if token == "[":
            listed = True
        elif token == "]":
            name, listed = _Field("", 0), False
        elif token in ("{", "<"):
            fields.append(_Field(name.name, line if listed else name.line, fields=_message(tokens)))
            name = name if listed else _Field("", 0)
        elif not name.name and token[0] in "\"'" and fields:
            fields[-1].value += _said(token)  # the second half of a text in two strings
        elif not name.name and token not in (":", ";", ","):
            name = _Field(token, line)
        elif token not in (":", ";", ","):
            fields.append(_Field(name.name, line if listed else name.line, _said(token)))
            name = name if listed else _Field("", 0)
    return fields


def _said(token: str) -> str:
    return token[1:-1] if token[0] in "\"'" else token
