"""Benchmarks are users of the packages: they import public names of public faces."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.project.test_layout import PACKAGES, names_of_face
from tests.support.checkout import ROOT

FACES = {
    "defensemble",
    "defensemble.ensembles",
    "defensemble.load",
    "defensemble.probes",
    "defensemble.results",
    "defensemble_export",
    "defensemble_export.editing",
    "defensemble_ops",
    "defensemble_server",
    "defensemble_training",
}
# Every module of these is public, but for those whose names begin with an underscore.
PUBLIC_PACKAGES = ("defensemble_images", "defensemble_repository")
SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))


def is_public(module: str, name: str) -> bool:
    package = module.partition(".")[0]
    if any(part.startswith("_") for part in (*module.split("."), name)):
        return False
    if package in PUBLIC_PACKAGES:
        return True
    return module in FACES and name in names_of_face(module)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_benchmark_imports_only_public_names(path: Path) -> None:
    private = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            private += [alias.name for alias in node.names if alias.name.partition(".")[0] in PACKAGES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
            private += [f"{node.module}.{alias.name}" for alias in node.names if not is_public(node.module or "", alias.name)]
    assert private == []


def test_what_is_public() -> None:
    assert is_public("defensemble", "Client")
    assert is_public("defensemble.results", "provenance")
    assert is_public("defensemble_repository.names", "HISTORY_FILE")
    assert not is_public("defensemble", "_exceptions")
    assert not is_public("defensemble._transport.base", "OutputRequest")
    assert not is_public("defensemble_training.trainer.run_state", "STATE_FILE")
    assert not is_public("defensemble_server", "process")
