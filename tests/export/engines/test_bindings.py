"""The builder uses only names and keywords of NVIDIA's Python bindings, for both major versions that are served.

This proves names, and that the logger and the monitor are of the classes that TensorRT calls; it does not prove that a plan builds: the
bindings' wheels are on PyPI, TensorRT itself is not, and empty libraries stand in its place.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defensemble_server.runtime.backend_build import find_compiler
from tests.support.checkout import ROOT

WHEELS = {"10.13.3.9": "tensorrt-cu12-bindings", "11.4.0.106": "tensorrt-cu13-bindings"}
POLYGRAPHY = "polygraphy==0.53.6"
# TensorRT's symbols that `nm -D --undefined-only` lists in the bindings' shared object.
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
Probe = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", params=sorted(WHEELS))
def probe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Probe:
    """Run `tensorrt_names.py` with the bindings of a version, and Polygraphy."""
    version = str(request.param)
    folder = tmp_path_factory.mktemp("bindings")
    wheels = [f"{WHEELS[version]}=={version}", POLYGRAPHY]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, *wheels], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"{', '.join(wheels)} cannot be had: {done.stderr.strip().splitlines()[-1]}")
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder / "site")
    libraries = _empty_libraries(folder / "libraries", version.partition(".")[0])

    def run(*names: str) -> dict[str, Any]:
        environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": os.pathsep.join([str(folder / "site"), *sys.path])}
        script = ROOT / "tests/support/tensorrt_names.py"
        ran = subprocess.run(
            [sys.executable, str(script), *names], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert ran.returncode == 0, ran.stderr
        answer: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
        assert answer["version"] == version
        return answer

    return run


def _empty_libraries(folder: Path, major: str) -> Path:
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("there is no C++ compiler to make empty libraries with")
    folder.mkdir()
    source = folder / "empty.cc"
    source.write_text("".join(f'extern "C" void* {name}() {{ return nullptr; }}\n' for name in ENTRY_POINTS))
    for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        command = [*compiler.command, "-shared", "-fPIC", "-o", str(folder / f"lib{name}.so.{major}"), str(source)]
        subprocess.run(command, check=True, timeout=120)
    return folder


def test_the_builder_uses_only_names_of_the_real_bindings(probe: Probe) -> None:
    answer = probe("BuilderFlag.FP16", "BuilderFlag.TF32", "Builder.create_network(flags=)", "Builder.create_network(flag=)")
    assert answer["wrong"] == []
    # Some names of each kind, so that a list that was not collected is noticed.
    assert {
        "Builder(logger=)",
        "Builder.build_serialized_network(config=)",
        "BuilderFlag.VERSION_COMPATIBLE",
        "HardwareCompatibilityLevel.AMPERE_PLUS",
        "IBuilderConfig.builder_optimization_level",
        "IBuilderConfig.set_memory_pool_limit(pool_size=)",
        "IBuilderConfig.set_timing_cache(ignore_mismatch=)",
        "ILogger.Severity.INTERNAL_ERROR",
        "IOptimizationProfile.set_shape(opt=)",
        "IProgressMonitor.step_complete",
        "ITimingCache.combine(input_cache=)",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "OnnxParser.num_errors",
        "OnnxParser.parse(path=)",
        "ParserError.node_name",
    } <= set(answer["names"])
    # Missing names are detected: TensorRT 11 removed weak typing.
    assert answer["there"] == {
        "BuilderFlag.FP16": answer["version"].startswith("10."),
        "BuilderFlag.TF32": True,
        "Builder.create_network(flags=)": True,
        "Builder.create_network(flag=)": False,
    }
    assert answer["callbacks"] == ["of INTERNAL_ERROR", "of ERROR", "building  0 2", "building  1 2", "building  2 2"]
    assert "GPU" in answer["running"], "Polygraphy's runner has got as far as the library"
