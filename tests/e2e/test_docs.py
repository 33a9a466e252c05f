"""The documentation: every block is valid and runs, every command exists, every link leads somewhere, and the site builds."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from defensemble_training.attacks.presets import PAPER_PRESETS
from docs import hooks
from tests.support.checkout import ROOT
from tests.support.command_line import context_of
from tests.support.facts import assert_facts
from tests.support.pages import Block, Ports, blocks_to_run, check_blocks, read_blocks, run_blocks

DOCS = ROOT / "docs"
RESULTS = DOCS / "results"
CARDS = sorted((ROOT / "zoo/cifar10").glob("*.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "zoo/README.md", "benchmarks/README.md")),
    *CARDS,
    *sorted(page for page in DOCS.rglob("*.md") if page.parent != RESULTS),
]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
# Pages whose blocks are run by a test of their own, which asserts what they print.
OWN_TESTS = {
    "README.md": "tests/e2e/test_readme.py",
    "docs/how-to/edit-live.md": "tests/e2e/test_ensembles_page.py",
    "docs/how-to/proxy.md": "tests/e2e/proxy/test_page.py",
    **{
        f"docs/how-to/{name}.md": "tests/e2e/test_client_pages.py"
        for name in ("asyncio", "connect", "notebooks", "pictures", "several-servers", "test-your-code")
    },
    "docs/reference/networks.md": "tests/training/models/test_networks_page.py",
}
# Pages of which no block is run, with the reason.
NO_BLOCK_RUN = {card.relative_to(ROOT).as_posix(): "the training takes hours" for card in CARDS}
NO_BLOCK_RUN["benchmarks/README.md"] = "the measurements take minutes; tests/e2e/test_benchmarks.py runs the scripts"
# Blocks that are not run, by page: a new one is a decision.
NOT_RUN = {
    "README.md": 3,
    "CONTRIBUTING.md": 1,
    "zoo/README.md": 2,
    "docs/how-to/asyncio.md": 1,
    "docs/how-to/connect.md": 1,
    "docs/how-to/docker.md": 3,
    "docs/how-to/edit-live.md": 1,
    "docs/how-to/kubernetes.md": 2,
    "docs/how-to/load-test.md": 3,
    "docs/how-to/notebooks.md": 1,
    "docs/how-to/predict.md": 2,
    "docs/how-to/probe.md": 1,
    "docs/how-to/proxy.md": 3,
    "docs/how-to/run-as-a-service.md": 2,
    "docs/how-to/tensorrt.md": 1,
    "docs/how-to/train.md": 3,
    "docs/reference/cli.md": 1,
    "docs/tutorials/first-ensemble.md": 1,
    "docs/tutorials/own-onnx.md": 1,
}
# Facts that the blocks of a page print, separated by ` | `.
PRINTED = {
    "zoo/README.md": "0.1 | 10000 | images.npy[63] | stopped the server",
    "docs/tutorials/first-ensemble.md": "['1', '3', '3', '8' | (8, 10) | \"name\":\"probabilities\" | Gaussian noise: accuracy",
    "docs/tutorials/python-client.md": (
        "(1, 16, 16) 64 | ['1', '3', '3', '8'] | (359, 10) | ['1'] | of 359 | mean entropy | (N, 1, 16, 16) | keep0.3, keep0.5 | 1e-06 s"
        " | 6 attempts | stopped the server"
    ),
    "docs/tutorials/own-pytorch.md": "359 test images | entry.1.defect.mask | of 64 images correct | stopped the server",
    "docs/tutorials/own-onnx.md": "resnet-b | animals | stopped the server",
    "docs/how-to/train.md": "wrote checkpoints/first.safetensors | nothing to resume | accuracy | stopped the server",
    "docs/how-to/export.md": "keep0.3-half | fused-from-python/config.pbtxt",
    "docs/how-to/canary.md": "64 images get the same label | canary | stopped the server",
    "docs/how-to/tensorrt.md": "keep0.3 | cpu",
    "docs/how-to/load-test.md": (
        "1 caller | 4 callers | wrote closed.json | grpc://localhost | wrote protocols.html | wrote closed.md | wrote closed.csv"
        " | images/s p99 | stopped the server"
    ),
    "docs/how-to/probe.md": (
        "Gaussian noise: accuracy | wrote 8bit.json | Square attack, linf | Boundary attack | HopSkipJump, l2 | wrote keep0.3.json"
        " | 100 images under attack | worst case | Patch shuffle | Common corruptions | Texture against shape | 'verification' | B - A"
        " | wrote report.html | wrote figures.csv | merged.json: 100 images of 2 shards | brightest half | WARN clean accuracy above chance"
        " | stopped the server"
    ),
    "docs/explanation/mask-aware.md": (
        "operator: True False | equal: True | libdefensemble_ops.so | wrote keep0.3/configs/cpu.pbtxt | MaskedNetwork_v1 | functions: 0"
    ),
    "docs/reference/probe-results.md": "[3 1 4]",
}
_LINK = re.compile(r"!?\[[^\]]*\]\((?!https?:|#)([^)#\s]+)")


def page_of(name: str) -> Path:
    return ROOT / name


def test_every_page_with_blocks_is_run() -> None:
    with_blocks = {name for name in NAMES if blocks_to_run(page_of(name))}
    assert with_blocks == set(PRINTED) | set(OWN_TESTS) | set(NO_BLOCK_RUN)
    assert [name for name, test in OWN_TESTS.items() if Path(name).name not in (ROOT / test).read_text()] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_block_is_valid_and_few_are_not_run(name: str) -> None:
    page = page_of(name)
    check_blocks(page)
    reasons = [block.reason for block in read_blocks(page) if block.reason]
    assert len(reasons) == NOT_RUN.get(name, 0), reasons


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_a_page_exists(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = read_blocks(page_of(name))
    calls = [words[words.index("defensemble") + 1 :] for block in blocks for words in block.calls() if "defensemble" in words]
    calls = [words for words in calls if words]
    assert len(calls) >= sum(len(re.findall("^defensemble ", block.commands, re.MULTILINE)) for block in blocks)
    for words in calls:
        make_named_files(words)
        context_of(*words)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_that_a_python_block_imports_exists(name: str) -> None:
    for block in read_blocks(page_of(name)):
        statements = ast.walk(ast.parse(block.text)) if block.language == "python" else ()
        for statement in statements:
            if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith("defensemble"):
                module = importlib.import_module(str(statement.module))
                assert [alias.name for alias in statement.names if not hasattr(module, alias.name)] == []


def make_named_files(words: list[str]) -> None:
    """Make a file or folder for each word of a command that may name one, in the current folder: a command refuses what is not there."""
    for word in words:
        path = Path(word.rpartition("=")[2])
        if word.startswith("-") or "://" in word or path.is_absolute() or path.exists() or len(word) > 100:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix else path.mkdir()


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_page_links_to_exists(name: str) -> None:
    page = page_of(name)
    assert [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()] == []


def documented_names() -> set[str]:
    return {name for page in (DOCS / "reference").glob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)}


def test_every_name_of_the_python_reference_exists() -> None:
    for name in documented_names():
        module, _, attribute = name.rpartition(".")
        if importlib.util.find_spec(module) is None or not hasattr(importlib.import_module(module), attribute):
            importlib.import_module(name)


@pytest.mark.parametrize("module", ["defensemble", "defensemble.ensembles", "defensemble.probes"])
def test_every_public_name_of_the_client_is_in_the_reference(module: str) -> None:
    public = [name for name in importlib.import_module(module).__all__ if not name.endswith("Error") and name != "__version__"]
    assert [name for name in public if f"{module}.{name}" not in documented_names()] == []


def test_every_name_of_the_probes_that_an_example_uses_is_in_the_reference() -> None:
    used: set[str] = set()
    for name in importlib.import_module("defensemble.probes").__all__:
        for line in re.findall(r"^\s*>>> (.*)$", getattr(importlib.import_module("defensemble.probes"), name).__doc__ or "", re.MULTILINE):
            used |= set(re.findall(r"(?<![\w.])([A-Za-z]\w+)(?=[(,)])", line))
    modules = [module for name, module in sys.modules.items() if name.startswith("defensemble.probes.")]
    defined = {name for name in used for module in modules if getattr(vars(module).get(name), "__module__", "").startswith("defensemble.")}
    assert {"load_probe_data", "measure"} <= defined
    assert {f"defensemble.probes.{name}" for name in defined} - documented_names() == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTED)
def test_the_blocks_of_a_page_run_in_order(name: str, tmp_path: Path, ports: Ports) -> None:
    output = run_blocks(page_of(name), tmp_path, ports)
    for fact in PRINTED[name].split(" | "):
        assert fact in output


def test_no_page_has_long_lines() -> None:
    exempt = re.compile(r"\||!?\[|<!--|https?:|.*\]\(\S+$")
    for name in NAMES:
        if name in NO_BLOCK_RUN:  # generated, or with tables of another page
            continue
        prose = re.sub(r"^ *```.*?^ *```$", "", page_of(name).read_text(), flags=re.MULTILINE | re.DOTALL)
        long = [line for line in prose.splitlines() if len(line) > 140 and not exempt.match(line)]
        assert long == [], name


def kubernetes_objects() -> dict[str, Any]:
    (block,) = [block for block in read_blocks(DOCS / "how-to/kubernetes.md") if block.language == "yaml"]
    return {item["kind"]: item for item in yaml.safe_load_all(block.text)}


def test_the_kubernetes_manifests_run_what_compose_runs() -> None:
    objects = yaml.safe_load((ROOT / "docker-compose.yml").read_text().replace("$$", "$"))
    compose = objects["services"]["triton"]
    deployment = kubernetes_objects()["Deployment"]
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    key = re.compile(r"\$[({]DEFENSEMBLE_ADMIN_KEY[^)}]*[)}]")
    threads = re.compile(r"intra_op_thread_count=.*")
    expected = [threads.sub("T", key.sub("KEY", word)) for word in compose["command"]]
    assert [threads.sub("T", key.sub("KEY", word)) for word in container["args"]] == expected
    assert container["image"] == compose["image"].replace("${NGC_TAG:-26.07}", "26.07")
    assert str(spec["securityContext"]["runAsUser"]) == compose["user"].partition(":")[0]
    assert spec["terminationGracePeriodSeconds"] == int(compose["stop_grace_period"].removesuffix("s"))
    assert container["startupProbe"]["httpGet"]["path"] in compose["healthcheck"]["test"][-1]


def test_the_kubernetes_objects_belong_together() -> None:
    objects = kubernetes_objects()
    assert set(objects) == {"PersistentVolumeClaim", "Deployment", "Service", "NetworkPolicy"}
    labels = {"app": "triton"}
    deployment, service, policy = (objects[kind]["spec"] for kind in ("Deployment", "Service", "NetworkPolicy"))
    assert deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"] == labels
    assert service["selector"] == policy["podSelector"]["matchLabels"] == labels
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == ports
    assert {port["port"] for port in policy["ingress"][0]["ports"]} == set(ports.values())
    claim = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]


def test_the_kubernetes_job_measures_each_shard_once_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [block for block in read_blocks(DOCS / "how-to/probe.md") if block.language == "yaml"]
    job = yaml.safe_load(block.text)
    template, objects = job["spec"]["template"], kubernetes_objects()
    (caller,) = objects["NetworkPolicy"]["spec"]["ingress"][0]["from"]
    assert (job["kind"], job["spec"]["completionMode"]) == ("Job", "Indexed")
    assert template["metadata"]["labels"] == caller["podSelector"]["matchLabels"]
    (container,) = template["spec"]["containers"]
    (url,) = re.findall(r"http://(\w+):(\d+)", container["command"][-1])
    service = objects["Service"]
    assert url == (service["metadata"]["name"], str(service["spec"]["ports"][0]["port"]))
    program = tmp_path / "defensemble"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o700)
    (tmp_path / "test.npz").touch()
    (tmp_path / "square-3.ledger").mkdir()
    (tmp_path / "square-3.ledger/plan.json").touch()
    monkeypatch.chdir(tmp_path)
    count, outs = job["spec"]["completions"], set()
    for index in range(count):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": str(index)}
        done = subprocess.run(container["command"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        values = context_of(*done.stdout.splitlines()).params
        assert values["shard"] == (index + 1, count)
        assert values["resume"] == (index == 2)
        outs.add(values["out"])
    assert len(outs) == count


def test_the_command_reference_has_every_verb() -> None:
    text = hooks.cli_reference()
    for verb in ("export", "import-onnx", "serve", "ensemble weight", "probe noise", "probe adaptive", "profile write", "completion"):
        assert f"\n## defensemble {verb}\n" in text
    assert "## defensemble\n" in text
    assert_facts(text, "--repository | DEFENSEMBLE_REPOSITORY")


def test_the_page_on_notebooks_shows_a_prediction() -> None:
    assert hooks.PREDICTION_MARKER in (DOCS / "how-to/notebooks.md").read_text()
    assert_facts(hooks.example_prediction(), "cat | 94.0% | 1 of 2 agree")


def test_every_preset_is_in_the_reference() -> None:
    assert hooks.PRESETS_MARKER in (DOCS / "reference/python-training.md").read_text()
    table = hooks.attack_presets()
    listed = {f"paper-{name}" if f"paper-{name}" in PAPER_PRESETS else name for name in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)}
    assert listed == {*PAPER_PRESETS, "adversarial-training", "adversarial-training-3"}
    for row in (
        "| `table2-pgd` | pgd | 8/255 | 7 | 2/255 | Table 2",
        "| `cw` | cw | - | 1000 | 0.01 |",
        "| `paper-table9` | `mnist-pgd` |",
    ):
        assert row in table


def test_links_out_of_the_site_become_text() -> None:
    page = DOCS / "how-to/train.md"
    assert hooks.without_outer_links("[the zoo](../../zoo/README.md#use) [x](../tested.md)", page) == "the zoo [x](../tested.md)"


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: `make docs` installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    loaded = re.compile(r"""<(?:script|img|iframe|link rel="stylesheet")[^>]*?(?:src|href)="(https?:[^"]+)""")
    assert {url for page in pages for url in loaded.findall(page.read_text())} == set()


def test_a_block_that_names_another_runs_after_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- run after: second -->\n```sh\nthird\n```\n\n```sh\nsecond\n```\n\n<!-- not run: a reason -->\n```sh\nno\n```\n")
    assert [block.text for block in blocks_to_run(page)] == ["second\n", "third\n"]
    assert Block("sh", "no\n", reason="a reason") in read_blocks(page)
