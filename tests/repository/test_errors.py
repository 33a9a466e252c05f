"""The table of all errors in the docstring of `defensemble_repository.errors`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from defensemble_repository import errors

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "export/defensemble_repository/errors.py",
    "export/defensemble_ops/errors.py",
    "export/defensemble_export/errors.py",
    "client/defensemble/_exceptions.py",
    "client/defensemble/ensembles/errors.py",
    "server_config/defensemble_server/errors.py",
    "training/defensemble_training/errors.py",
    "training/defensemble_images/errors.py",
)
BUILTIN = ("ValueError", "ImportError", "TimeoutError", "Exception", "UserWarning")


def defined_classes() -> Iterator[tuple[str, set[str]]]:
    """Yield each exception class of the packages with the names of its bases."""
    for module in MODULES:
        for node in ast.parse((ROOT / module).read_text()).body:
            if isinstance(node, ast.ClassDef) and node.bases:
                yield node.name, {base.id for base in node.bases if isinstance(base, ast.Name)}


def documented_classes() -> Iterator[tuple[str, set[str]]]:
    """Yield each class of the table with the name of its parent and of its builtin base."""
    parents: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│├└─ ]*)(\w+)(?: \((\w+)\))?(?:  |$)", line)
        if match is None:
            continue
        depth = len(match[1]) // 4
        parents[depth:] = [match[2]]
        if match[2] not in BUILTIN:
            yield match[2], {name for name in (parents[depth - 1] if depth else None, match[3]) if name is not None}


def test_the_table_has_every_class_with_its_bases() -> None:
    assert dict(documented_classes()) == dict(defined_classes())


def test_every_class_has_one_clause() -> None:
    table = [line for line in (errors.__doc__ or "").splitlines() if re.match(r"    [│├└A-Z]", line) and not line.endswith("UserWarning")]
    assert [line for line in table if not re.search(r"\S  +\S", line[4:].lstrip("│├└─ "))] == []
