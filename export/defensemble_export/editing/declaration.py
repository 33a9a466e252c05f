"""Ensembles as YAML files: name, average, and members with model, version and weight.

Only the structure is parsed as YAML. Values are read as plain text, because a YAML 1.1 reader turns a model named `0.5` into a number and
one named `on` into a boolean.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from defensemble_repository.ensemble import AVERAGES, Ensemble, Member
from defensemble_repository.errors import EnsembleError
from defensemble_repository.filesystem.regular_files import read_user_file
from defensemble_repository.names import check_name
from defensemble_repository.reader import MAX_VERSION

from ..errors import DeclarationError

LARGEST_FILE = 1 << 20
_KEYS = ("name", "average", "members")
_MEMBER_KEYS = ("model", "version", "weight")
# Numbers that YAML 1.1, YAML 1.2, JSON and Python read alike; 017, 0x11, 1_000 and 1:30 are ambiguous.
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
# YAML reads these as numbers; an ensemble rejects them with its own message.
_INVALID_WEIGHTS = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}
_EXAMPLE = "such as\nname: ensemble\nmembers:\n  - model: keep0.1"


def read_declaration(path: Path) -> Ensemble:
    """Read an ensemble from a YAML file in UTF-8 of at most 1 MiB; see `ensemble_from_yaml` for its keys.

    Raises:
        DeclarationError: The file is not a valid declaration.
        OSError: The file cannot be read.

    Example:
        >>> ensembles.apply(read_declaration(Path("ensemble.yaml")))
    """
    content = read_user_file(path, LARGEST_FILE)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DeclarationError(f"{path}:{line}: byte {error.start} is not UTF-8 ({error.reason}); save the file as UTF-8") from error
    return ensemble_from_yaml(text, str(path))


def ensemble_from_yaml(text: str, where: str) -> Ensemble:
    """Read an ensemble from a YAML text.

    `name`, `members` and each member's `model` are required. The defaults are `version: 1`, `weight: 1` and `average: probabilities`.

    Args:
        text: The YAML text.
        where: What error messages call the text, such as its path.

    Raises:
        DeclarationError: The text is not YAML, has unknown keys or invalid values, or declares an invalid ensemble. The message has the
            line number.
    """
    return _Declaration(where).ensemble(_root(text, where))


def yaml_from_ensemble(ensemble: Ensemble) -> str:
    """Return the YAML text that declares `ensemble`; `ensemble_from_yaml` reads an equal ensemble from it."""
    values = {
        "name": ensemble.name,
        "average": ensemble.average,
        "members": [
            {"model": member.model, "version": int(member.version), "weight": _plain_number(member.weight)} for member in ensemble.members
        ],
    }
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=False)
    return text


def _plain_number(weight: float) -> int | float:
    # Above 1e15, an integer is easier to read with an exponent.
    return int(weight) if float(weight).is_integer() and abs(weight) < 1e15 else float(weight)


class _Dumper(yaml.SafeDumper):
    """A dumper that indents lists below their keys."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


class _Loader(yaml.SafeLoader):
    """A loader that rejects aliases (a small file could expand to a huge one), anchors and tags."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="anchors (&) and aliases (*) are not supported; write the value out", problem_mark=event.start_mark
            )
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem="tags (!) are not supported; write only the value", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


def _root(text: str, where: str) -> yaml.Node:
    text = text.removeprefix("\ufeff")
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise DeclarationError(f"{where}:{line}: not valid YAML: {reason}{_tab_hint(text, line)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DeclarationError(f"{where}:{line}: not valid YAML: it contains the character {text[error.position]!r}; remove it") from error
    except (ValueError, OverflowError, RecursionError) as error:  # an escape beyond Unicode; 300 brackets
        line = 1 if loader is None else loader.get_mark().line + 1
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DeclarationError(f"{where}:{line}: not valid YAML: {reason}") from error
    if root is None or (_is_plain(root) and not root.value):
        raise DeclarationError(f"{where} is empty; expected a name and members, {_EXAMPLE}")
    return root


def _tab_hint(text: str, line: int) -> str:
    lines = text.splitlines()[line - 1 : line]
    return "; indent with spaces, not tabs" if lines and "\t" in lines[0][: len(lines[0]) - len(lines[0].lstrip())] else ""


class _Declaration:
    """Reads the YAML nodes of a declaration; errors name the file and line."""

    def __init__(self, where: str) -> None:
        self.where = where

    def ensemble(self, root: yaml.Node) -> Ensemble:
        values = self.mapping(root, "the file", _KEYS, ("name", "members"))
        try:
            name = check_name(self.text(values["name"], "name"))
        except EnsembleError as error:
            self.refuse(values["name"], str(error), error)
        average = AVERAGES[0]
        if "average" in values:
            average = self.text(values["average"], "average")
            if average not in AVERAGES:
                self.refuse(
                    values["average"], f"average must be one of {', '.join(AVERAGES)}, got {average[:80]!r}{_nearest(average, AVERAGES)}"
                )
        rows = values["members"]
        if not isinstance(rows, yaml.SequenceNode):
            self.refuse(rows, f"members must be a list, got {_kind(rows)}; write '- model: NAME' for each")
        members: dict[tuple[str, int], Member] = {}
        for node in rows.value:
            member = self.member(node)
            if (member.model, member.version) in members:
                self.refuse(node, f"{member.model}@{member.version} is listed twice; list it once, with a larger weight")
            members[member.model, member.version] = member
        try:
            return Ensemble(name, tuple(members.values()), average)
        except EnsembleError as error:
            self.refuse(rows, str(error), error)

    def member(self, node: yaml.Node) -> Member:
        values = self.mapping(node, "a member", _MEMBER_KEYS, ("model",))
        try:
            model = check_name(self.text(values["model"], "model"))
        except EnsembleError as error:
            self.refuse(values["model"], str(error), error)
        version = self.version(values["version"]) if "version" in values else 1
        weight = self.weight(values["weight"]) if "weight" in values else 1.0
        try:
            return Member(model, version, weight)
        except EnsembleError as error:
            self.refuse(values.get("weight", node), str(error), error)

    def mapping(self, node: yaml.Node, what: str, known: Sequence[str], required: Sequence[str]) -> Mapping[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self.refuse(node, f"{what} must have the keys {', '.join(known)}, got {_kind(node)}; write 'key: value', {_EXAMPLE}")
        values: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.refuse(key, f"keys must be among {', '.join(known)}, got {_kind(key)}")
            if key.value not in known:
                self.refuse(key, f"unknown key {key.value[:80]!r} in {what}; expected {', '.join(known)}{_nearest(key.value, known)}")
            if key.value in values:
                self.refuse(key, f"{key.value} is set twice, first in line {values[key.value].start_mark.line + 1}; remove one")
            values[key.value] = value
        missing = [key for key in required if key not in values]
        if missing:
            self.refuse(node, f"{what} has no {' and no '.join(missing)}; add {' and '.join(f'{key}: ...' for key in missing)}")
        return values

    def text(self, node: yaml.Node, key: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self.refuse(node, f"{key} must be text, got {_kind(node)}")
        return str(node.value)

    def version(self, node: yaml.Node) -> int:
        expected = f"version must be an integer from 1 to {MAX_VERSION}"
        # `int` raises for thousands of digits.
        if not (_is_plain(node) and len(node.value) <= 20 and _INTEGER.fullmatch(node.value)):
            self.refuse(node, f"{expected}, got {_kind(node)}")
        version = int(node.value)
        if not 1 <= version <= MAX_VERSION:
            self.refuse(node, f"{expected}, got {version}; write the number of a version, because none means the newest")
        return version

    def weight(self, node: yaml.Node) -> float:
        text = _INVALID_WEIGHTS.get(str(node.value).lower(), str(node.value)) if _is_plain(node) else ""
        if not (text in _INVALID_WEIGHTS.values() or _NUMBER.fullmatch(text)):
            self.refuse(node, f"weight must be a number above 0, such as 1 or 0.25, got {_kind(node)}")
        return float(text)

    def refuse(self, node: yaml.Node, problem: str, cause: Exception | None = None) -> NoReturn:
        raise DeclarationError(f"{self.where}:{node.start_mark.line + 1}: {problem}") from cause


def _is_plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None


def _kind(node: yaml.Node) -> str:
    """Describe a node for an error message."""
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if isinstance(node, yaml.MappingNode):
        return "keys with values"
    if _is_plain(node):
        return f"{node.value[:80]}" if node.value else "nothing"
    return f"the text {node.value[:80]!r}"


def _nearest(got: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(got.lower(), known, 1)
    return f"; did you mean {near[0]}?" if near else ""
