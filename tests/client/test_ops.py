"""The client's module for the operator library: it imports what it needs when it is called, and names what is not installed."""

from __future__ import annotations

import subprocess
import sys

import onnxruntime
import pytest

import defensemble_ops
from defensemble import MissingExtraError, ops
from tests.server.backend.test_building import hide
from tests.support import operator_graphs as operators
from tests.support.facts import raises


def test_a_session_with_the_library_is_active() -> None:
    assert ops.library_path() == defensemble_ops.library_path()
    options = onnxruntime.SessionOptions()
    dense = onnxruntime.InferenceSession(operators.masking().SerializeToString(), options)
    ops.register(options)
    active = onnxruntime.InferenceSession(operators.masking().SerializeToString(), options)
    assert (ops.is_active(active), ops.is_active(dense)) == (True, False)


def test_without_onnxruntime_the_error_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    hide("onnxruntime", monkeypatch)
    for function in (ops.register, ops.is_active):
        with raises(MissingExtraError, "ONNX Runtime | pip install 'defensemble[server]'"):
            function(None)


def test_the_import_loads_nothing_else() -> None:
    code = "import sys, defensemble.ops; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert "defensemble" in loaded
    assert loaded & {"onnxruntime", "numpy", "defensemble_ops", "ctypes"} == set()
