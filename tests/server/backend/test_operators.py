"""Mask-aware graphs: the operator library computes them where it works, and the log shows what computes them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.inliner import inline_local_functions

from defensemble_ops import OPERATOR, instruction_set
from defensemble_ops.library import LIBRARY_NAME as OPERATOR_LIBRARY_NAME
from defensemble_server.runtime.backend_build import LIBRARY_NAME, onnxruntime_library
from tests.support import backend_graphs as graphs, operator_graphs as operators
from tests.support.backend_triton import Triton
from tests.support.facts import assert_facts


def stated(operator: str = OPERATOR, version: int = 1) -> dict[str, Any]:
    return {**operators.CONFIG, "parameters": {f"mask_aware.{version}": {"string_value": operator}}}


def served(triton: Triton, config: dict[str, Any], model: onnx.ModelProto) -> str:
    """Load a model, check its answers, and return the line of the log that names what computes it, or ""."""
    name = triton.load(config, model)
    for count in (1, 3, 8):
        images = operators.images(count)
        np.testing.assert_array_equal(triton.infer(name, {"x": images})["y"], operators.masked(images))
    lines = re.findall(rf"^(.*\b{name} version 1: mask-aware: .*)\"$", triton.log(), re.MULTILINE)
    assert len(lines) < 2
    return lines[0] if lines else ""


def without(backend_directory: Path, folder: Path) -> Path:
    """Copy the backend, without the operator library."""
    (folder / "onnxruntime").mkdir(parents=True)
    shutil.copy(backend_directory / "onnxruntime" / LIBRARY_NAME, folder / "onnxruntime")
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, backend_directory: Path) -> Iterator[Triton]:
    folder = tmp_path_factory.mktemp("dense")
    backend = without(backend_directory, folder / "backend")
    with Triton(folder / "server", backend, {"library": str(onnxruntime_library())}) as server:
        yield server


@pytest.mark.parametrize("config", [operators.CONFIG, stated()], ids=["unstated", "stated"])
def test_the_operator_library_is_used_and_logged(triton: Triton, config: dict[str, Any]) -> None:
    line = served(triton, config, operators.masking())
    assert line.startswith("I")
    assert line.endswith(f"mask-aware: 1 operator node ({instruction_set()})")


def test_each_node_of_a_graph_is_counted(triton: Triton) -> None:
    model = operators.masking()
    second = onnx.NodeProto()
    second.CopyFrom(model.graph.node[0])
    model.graph.node[0].output[0] = second.input[0] = "between"
    model.graph.node.append(second)
    assert served(triton, stated(), model).endswith(f"mask-aware: 2 operator nodes ({instruction_set()})")


def test_a_graph_without_the_operator_is_not_mentioned(triton: Triton) -> None:
    name = triton.load(graphs.AFFINE_CONFIG, graphs.affine())
    assert f"{name} version 1: mask-aware" not in triton.log()


def test_another_operator_runs_densely_with_a_warning(triton: Triton) -> None:
    line = served(triton, stated("MaskedNetwork_v2"), operators.masking("MaskedNetwork_v2"))
    assert line.startswith("W")
    assert_facts(line, f"runs densely | 'MaskedNetwork_v2' | {OPERATOR}")


def test_a_graph_that_lacks_the_stated_operator_is_reported(triton: Triton) -> None:
    model = inline_local_functions(operators.masking())
    line = served(triton, stated(), model)
    assert line.startswith("W")
    assert_facts(line, f"runs densely | no node {OPERATOR}")
    assert served(triton, stated(version=2), model) == "", "it is stated for another version"


def test_without_the_library_models_run_densely_with_a_warning_and_an_error(dense: Triton) -> None:
    line = served(dense, stated(), operators.masking())
    (error,) = re.findall(r"^E.*operator library.*$", dense.log(), re.MULTILINE)
    assert_facts(error, f"{OPERATOR_LIBRARY_NAME} | no such file | densely | `defensemble serve`")
    assert line.startswith("W")
    assert_facts(line, f"runs densely | {OPERATOR_LIBRARY_NAME} | no such file")
    assert served(dense, operators.CONFIG, operators.masking()) == ""


def test_a_program_that_is_damaged_is_refused(triton: Triton) -> None:
    text = triton.load_error(stated(), operators.masking(program="lanes 1,1,8,16\nno-such-instruction\n"))
    assert_facts(text, f"{OPERATOR} | no-such-instruction")


@pytest.mark.slow
def test_an_instruction_set_that_is_none_is_an_error_in_the_log(tmp_path: Path, backend_directory: Path) -> None:
    settings = {"library": str(onnxruntime_library())}
    with Triton(tmp_path, backend_directory, settings, {"DEFENSEMBLE_OPS_ISA": "sse9"}) as server:
        line = served(server, stated(), operators.masking())
        (error,) = re.findall(r"^E.*operator library.*$", server.log(), re.MULTILINE)
    assert_facts(error, "DEFENSEMBLE_OPS_ISA | 'sse9' | avx2 | baseline")
    assert_facts(line, "runs densely | DEFENSEMBLE_OPS_ISA")
