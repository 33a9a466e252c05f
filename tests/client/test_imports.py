from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import defensemble
import defensemble.probes

HEAVY = (
    "numpy",
    "httptools",
    "asyncio",
    "tritonclient",
    "grpc",
    "PIL",
    "torch",
    "onnx",
    "onnxruntime",
    "defensemble_training",
    "defensemble_export",
    "defensemble_server",
)


def loaded_by(code: str) -> list[str]:
    """Return the heavy modules that some code loads in a new interpreter."""
    script = f"import sys\n{code}\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    names: list[str] = re.findall(r"'(\w+)'", done.stdout.splitlines()[-1])
    return names


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import defensemble, defensemble.probes; defensemble.__version__, dir(defensemble)") == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["predict", "--help"], ["probe", "--help"], ["probe", "noise", "--help"]])
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    call = f"cli({arguments!r}, prog_name='defensemble')"
    code = f"from defensemble.cli import cli\ntry:\n    {call}\nexcept SystemExit as end:\n    assert end.code == 0"
    assert loaded_by(code) == []


def test_the_http_transport_needs_no_grpc() -> None:
    assert loaded_by("from defensemble import Client; Client('http://localhost:1').close()") == ["numpy", "httptools"]


def test_public_names_are_pinned_and_exist() -> None:
    assert defensemble.__all__ == [
        *("AsyncClient", "AsyncGrpcTransport", "AsyncHttpTransport", "AsyncTransport", "Attempt", "Client", "ClientClosedError"),
        *("ConnectionFailedError", "ConnectionOptions", "Counters", "DeadlineExceededError", "DefensembleError", "FakeModel"),
        *("FakeTransport", "ForbiddenError", "GrpcTransport", "HttpTransport", "InputError", "MissingExtraError", "ModelInfo"),
        *("ModelMetadata", "ModelNotFoundError", "ModelState", "ModelStatistics", "NotReadyError", "OutputNotRequestedError"),
        *("OutputRequest", "Outputs", "Prediction", "Rate", "RequestRefusedError", "RetriesExhaustedError", "RetryPolicy"),
        *(
            "ServerFailedError",
            "ServerHealth",
            "ServerMetadata",
            "ServiceError",
            "TensorMetadata",
            "TlsFiles",
            "Transport",
            "WorkerEndedError",
        ),
        *("__version__", "rate", "wilson"),
    ]
    for module in (defensemble, defensemble.probes):
        for name in module.__all__:
            assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(defensemble, "nothing")  # noqa: B009


def test_the_version_matches_the_distribution() -> None:
    text = (Path(defensemble.__file__).parents[2] / "pyproject.toml").read_text()
    assert f'\nversion = "{defensemble.__version__}"\n' in text
