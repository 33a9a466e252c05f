"""`defensemble probe transfer` and `adaptive` against a real server: killed while it crafts, resumed, and reused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defensemble.probes import Adaptive
from defensemble.probes.outcome_reader import read_outcome
from defensemble.results.packed import unpack
from defensemble_server import ServeOptions, Server, serve
from defensemble_training import build, load_checkpoint, read_examples, save_checkpoint
from tests.support import tiny
from tests.support.attacked import batch
from tests.support.command_line import environment, run, start, succeed
from tests.support.facts import assert_facts
from tests.support.untrained import record_of, tiny_spec

pytestmark = pytest.mark.slow
N = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members, one of them a standard network, two surrogates, and images whose classes are those of the first member."""
    folder = tmp_path_factory.mktemp("transfer")
    for seed, (name, keep) in enumerate({"first": 0.5, "standard": 1.0, "mine": 0.5, "yours": 0.5}.items()):
        spec = tiny_spec(keep=keep, blocks=(0,), mask_seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = build(spec).train()
            module(torch.rand(64, 1, 8, 8))
        save_checkpoint(folder / f"{name}.safetensors", module.eval(), spec, record_of(spec))
    images = batch(N)[0]
    with torch.inference_mode():
        labels = load_checkpoint(folder / "first.safetensors")[0](images).argmax(dim=1)
    np.savez(folder / "test.npz", images=images.numpy(), labels=labels.numpy())
    np.save(folder / "images.npy", images.numpy())
    succeed("export", "first.safetensors", "standard.safetensors", "--images", "images.npy", "--repository", "repository", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serve(folder / "repository", ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)) as server:
        yield server
    assert tiny.leftovers(folder / "repository") == []


def options(server: Server, *more: str) -> list[str]:
    return [server.http_url, "--dataset", "test.npz", "--target", "ensemble", "--target", "first", *more]


def test_a_run_that_is_killed_while_it_crafts_resumes(folder: Path, server: Server) -> None:
    attack = ("--preset", "paper-pgd32", "--surrogate", "mine.safetensors", "--surrogate", "yours.safetensors")
    succeed("probe", "transfer", *options(server, *attack, "--out", "whole.json"), cwd=folder)
    process = start("probe", "transfer", *options(server, *attack, "--out", "killed.json"), cwd=folder, env=environment())
    examples, whole = folder / "killed.examples", folder / "whole.examples"
    deadline = time.monotonic() + 120
    while not examples.exists() or examples.stat().st_size < whole.stat().st_size / 4:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert examples.stat().st_size < whole.stat().st_size
    succeed("probe", "transfer", *options(server, *attack, "--out", "killed.json", "--resume"), cwd=folder)
    assert examples.read_bytes() == whole.read_bytes()
    results = [json.loads((folder / name).read_text()) for name in ("whole.json", "killed.json")]
    for first, second in zip(results[0]["targets"], results[1]["targets"], strict=True):
        assert first["per_image"] == second["per_image"]
        # Clean, the attack of each surrogate, and noise of its norm.
        assert first["queries"]["counted"] == second["queries"]["counted"] == (1 + len(first["conditions"])) * N
    assert results[0]["source"] == results[1]["source"]


def test_a_file_serves_without_surrogates(folder: Path, server: Server) -> None:
    crafting = options(server, "--surrogate", "mine.safetensors", "--limit", "30", "--preset", "paper-fgsm8", "--input", "8bit")
    succeed("probe", "transfer", *crafting, "--examples", "fgsm.examples", "--out", "a.json", cwd=folder)
    succeed("probe", "transfer", *options(server, "--examples", "fgsm.examples", "--input", "8bit", "--out", "b.json"), cwd=folder)
    first, second = (json.loads((folder / name).read_text()) for name in ("a.json", "b.json"))
    assert first["targets"][0]["per_image"] == second["targets"][0]["per_image"]
    assert (first["settings"], first["source"]) == (second["settings"], second["source"])
    opened = read_examples(folder / "fgsm.examples")
    fooled = unpack(first["source"]["is_source_fooled"]["fgsm8"], np.bool_, (30,), "a.json")
    assert np.array_equal(fooled, opened.is_source_fooled("fgsm8", opened.rows.tolist(), eight_bit=True))


@pytest.mark.parametrize("name", ["first", "standard"])
def test_a_member_is_no_surrogate(folder: Path, server: Server, name: str) -> None:
    attack = ("--surrogate", f"{name}.safetensors", "--limit", "20", "--preset", "paper-fgsm8", "--out", f"{name}.json")
    output = succeed("probe", "transfer", *options(server, *attack), cwd=folder)
    assert_facts(output, f"FAIL | ensemble | {name}")
    checks: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text())["checks"]
    found = {check["text"].split(":")[0]: check["status"] for check in checks if check["name"] == "surrogates are not members"}
    assert found == {"ensemble": "FAIL", "first": "FAIL" if name == "first" else "PASS"}


def test_adaptive_prints_the_verdict(folder: Path, server: Server) -> None:
    attack = ("--surrogate", "mine.safetensors", "--surrogate", "yours.safetensors", "--limit", "20", "--draws", "2")
    output = succeed("probe", "adaptive", *options(server, *attack, "--preset", "paper-fgsm8"), cwd=folder)
    result = json.loads((folder / "adaptive.json").read_text())
    outcome = read_outcome(folder / "adaptive.json")
    for target, measured in zip(result["targets"], outcome.targets, strict=True):
        summary = Adaptive.summary({}, outcome.rows, outcome.labels, measured.predicted)
        assert target["details"]["verdict"] == Adaptive.conclude(summary, outcome.checks)["verdict"]
        assert_facts(output, f"{target['name']} | {100 * target['details']['worst_case']['value']:.1f} %")
    names = [condition["name"] for condition in result["conditions"]]
    attacks = ["fgsm8 through probabilities", "fgsm8 through logits", "fgsm8 with the masks as trained"]
    assert names == ["random noise 8/255", *attacks]


def test_bad_input(folder: Path, server: Server) -> None:
    for more, facts in [
        (("--preset", "paper-fgsm8"), "surrogates | empty | --surrogate"),
        (("--surrogate", "none.safetensors"), "none.safetensors | does not exist"),
        (("--surrogate", "mine.safetensors", "--preset", "pgd"), "'pgd' | paper-pgd16"),
        (("--surrogate", "mine.safetensors", "--epsilons", "300"), "300 | [0, 255]"),
        (("--surrogate", "mine.safetensors", "--surrogate", "mine.safetensors"), "mine, mine"),
        (("--surrogate", "test.npz"), "test.npz"),
    ]:
        done = run("probe", "transfer", *options(server, "--out", "bad.json", *more), cwd=folder)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert_facts(done.stderr, facts)
    assert not (folder / "bad.json").exists()
