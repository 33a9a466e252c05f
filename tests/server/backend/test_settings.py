"""How a graph is run: threads, execution mode and optimisation from config.pbtxt, else from the backend's command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defensemble_server.runtime.backend_build import onnxruntime_library
from tests.support import backend_graphs as graphs
from tests.support.backend_triton import Triton, records
from tests.support.facts import assert_facts

INTRA_SPIN, INTER_SPIN = "session.intra_op.allow_spinning", "session.inter_op.allow_spinning"
A_COUNT = "0 | 1024"
A_MODE = "'0' or '1'"
# The `recorded` server's command line gives 2 and 3 threads. 99: all optimisations.
SILENT = {
    "intra": 2,
    "inter": 3,
    "mode": 0,
    "level": 99,
    INTRA_SPIN: "0",
    INTER_SPIN: "0",
    "session.use_env_allocators": "1",
    "session.use_device_allocator_for_initializers": "1",
}


def options_of(recorded: Triton, record_file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the backend set in ONNX Runtime for this config."""
    seen = len(records(record_file)) if record_file.exists() else 0
    recorded.load({**graphs.AFFINE_CONFIG, **config}, graphs.affine())
    return {record["option"]: record["value"] for record in records(record_file)[seen:] if "option" in record}


def level(number: int) -> dict[str, Any]:
    return {"optimization": {"graph": {"level": number}}}


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        ({}, {}),
        (graphs.parameters(intra_op_thread_count="1"), {"intra": 1}),
        (graphs.parameters(intra_op_thread_count="0"), {"intra": 0}),
        (graphs.parameters(inter_op_thread_count="4"), {"inter": 4}),
        (graphs.parameters(execution_mode="0"), {"mode": 0}),
        (graphs.parameters(execution_mode="1", inter_op_thread_count="2"), {"mode": 1, "inter": 2}),
        # NVIDIA's numbers for a level are not ONNX Runtime's.
        (level(-1), {"level": 1}),
        (level(0), {"level": 99}),
        (level(1), {"level": 2}),
        (level(2), {"level": 0}),
        (graphs.parameters(session__intra_op__allow_spinning="1"), {INTRA_SPIN: "1"}),
        (graphs.parameters(session__inter_op__allow_spinning="1"), {INTER_SPIN: "1"}),
        (graphs.parameters(session__intra_op__allow_spinning="0"), {}),
        (graphs.parameters(max_joined_rows="1"), {}),
        (graphs.parameters(max_joined_rows="65536"), {}),
        (graphs.parameters(what_we_write="anything"), {}),
    ],
)
def test_config_overrides_the_command_line(recorded: Triton, record_file: Path, config: dict[str, Any], facts: dict[str, Any]) -> None:
    assert options_of(recorded, record_file, config) == {**SILENT, **facts}


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            graphs.parameters(intra_op_thread_count="many"),
            f"intra_op_thread_count | {A_COUNT} | 'many'",
        ),
        (
            graphs.parameters(intra_op_thread_count="-1"),
            f"intra_op_thread_count | {A_COUNT} | '-1'",
        ),
        (graphs.parameters(intra_op_thread_count="1025"), "1024 | '1025'"),
        (graphs.parameters(intra_op_thread_count=""), "1024 | ''"),
        (graphs.parameters(intra_op_thread_count="2 "), "1024 | '2 '"),
        (
            graphs.parameters(inter_op_thread_count="1.5"),
            f"inter_op_thread_count | {A_COUNT} | '1.5'",
        ),
        (graphs.parameters(inter_op_thread_count="99999999999999999999"), "'99999999999999999999'"),
        (graphs.parameters(execution_mode="2"), f"execution_mode | {A_MODE} | '2'"),
        (
            graphs.parameters(execution_mode="parallel"),
            f"execution_mode | {A_MODE} | 'parallel'",
        ),
        (graphs.parameters(session__intra_op__allow_spinning="yes"), "allow_spinning must be '0' or '1' (no or yes), got 'yes'"),
        (
            graphs.parameters(max_joined_rows="0"),
            "parameter max_joined_rows must be an integer from 1 ",
        ),
        (graphs.parameters(max_joined_rows="65537"), "to 65536, got '65537'"),
        (graphs.parameters(max_joined_rows="all"), "to 65536, got 'all'"),
        (level(3), "optimization.graph.level must be -1 (basic), 0 (all), 1 (extended) or 2 (none), got '3'"),
        (level(-2), "optimization.graph.level must be -1 (basic), 0 (all), 1 (extended) or 2 (none), got '-2'"),
    ],
)
def test_bad_values_are_refused(triton: Triton, config: dict[str, Any], text: str) -> None:
    assert_facts(triton.load_error({**graphs.AFFINE_CONFIG, **config}, graphs.affine()), text)
    assert triton.alive()


def test_parameters_that_only_nvidias_backend_has_are_reported(triton: Triton) -> None:
    name = triton.load({**graphs.AFFINE_CONFIG, **graphs.parameters(enable_mem_arena="0")}, graphs.affine())
    assert f"{name}: parameter enable_mem_arena is known only to NVIDIA's backend" in triton.log()


def threads_of_a_model(server: Triton, config: dict[str, Any]) -> int:
    """Threads more in the server after a model was loaded. gRPC's own come and go: a few more or less mean nothing."""
    before = len(os.listdir(f"/proc/{server.pid}/task"))
    server.load({**graphs.AFFINE_CONFIG, **config}, graphs.affine())
    return len(os.listdir(f"/proc/{server.pid}/task")) - before


def test_thread_counts_are_applied(triton: Triton) -> None:
    triton.load(graphs.AFFINE_CONFIG, graphs.affine())
    assert threads_of_a_model(triton, {}) < 10, "by default the caller's thread computes"
    assert 50 <= threads_of_a_model(triton, graphs.parameters(intra_op_thread_count="61")) < 70


def test_parallel_answers_are_right(triton: Triton) -> None:
    settings = graphs.parameters(execution_mode="1", inter_op_thread_count="2", intra_op_thread_count="2")
    name = triton.load({**graphs.AFFINE_CONFIG, **settings}, graphs.affine())
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    for _ in range(5):
        answer = triton.infer(name, {"x": x})
        np.testing.assert_array_equal(answer["y"], 2 * x + 1)
        np.testing.assert_array_equal(answer["total"], x.sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("intra_op_thread_count", "-1", A_COUNT),
        ("intra_op_thread_count", "many", A_COUNT),
        ("intra_op_thread_count", "1025", A_COUNT),
        ("drain_seconds", "2.5", "0 | 1000000"),
    ],
)
def test_a_bad_number_on_the_command_line_is_refused(tmp_path: Path, backend_directory: Path, name: str, value: str, expected: str) -> None:
    settings = {"library": str(onnxruntime_library()), name: value}
    with Triton(tmp_path / "server", backend_directory, settings) as server:
        text = server.load_error(graphs.AFFINE_CONFIG, graphs.affine())
        assert_facts(text, f"--backend-config=onnxruntime,{name} | {expected} | '{value}'")
        assert server.alive()
