"""The shipped zoo: its plan, files and cards, each regenerated and compared."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from benchmarks.zoo.card import model_card
from benchmarks.zoo.plan import FOLDER, MAX_FILE_BYTES, PLAN, ROOT, TABLE, Network, check_network
from benchmarks.zoo_table import SCHEMA
from benchmarks.zoo_training import main, train_all, training_state
from defensemble_training import CheckpointError, build, load_checkpoint, mask_digest, read_metadata, save_checkpoint
from defensemble_training.models.defect import defect_masks
from defensemble_training.trainer.run_state import STATE_FILE
from tests.support.facts import raises
from tests.support.untrained import record_of, tiny_spec

RESULT = ROOT / "docs/results/zoo_cifar10.json"
SHIPPED = sorted((ROOT / FOLDER).glob("*.safetensors"))
needs_zoo = pytest.mark.skipif(not SHIPPED, reason="no network of the zoo exists; make zoo trains them")


def test_the_plan_has_the_networks_in_order() -> None:
    assert [(network.name, network.keep, network.epochs) for network in PLAN] == [
        ("standard", 1.0, 12),
        ("standard-other", 1.0, 12),
        ("keep0.1", 0.1, 8),
        ("keep0.5", 0.5, 8),
        ("keep0.1-other", 0.1, 8),
        ("keep0.3", 0.3, 8),
        ("keep0.7", 0.7, 8),
        ("keep0.5-b", 0.5, 12),
        ("keep0.5-c", 0.5, 12),
        ("surrogate-keep0.5-a", 0.5, 12),
        ("surrogate-keep0.5-b", 0.5, 12),
        ("adversarial", 1.0, 12),
    ]
    assert [network.seed for network in PLAN] == list(range(12))
    assert [network.mask_seed for network in PLAN] == [None, None, 0, 1, 2, 3, 4, 5, 6, 7, 8, None]


def test_train_accepts_every_command() -> None:
    from defensemble.cli.commands.train import command

    for network in PLAN:
        arguments = network.arguments("--precision", "bf16", "--compile", "--threads", "1")
        assert arguments[0] == "train"
        values = command.make_context("train", arguments[1:]).params
        assert values["output"] == network.path == Path(f"zoo/cifar10/{network.name}.safetensors")
        assert (values["width"], values["keep"], values["seed"], values["epochs"]) == (16, network.keep, network.seed, network.epochs)
        assert (values["mask_seed"], values["half"], values["resume"], values["preset"]) == (network.mask_seed or 0, True, True, "fast")


# What ships


def test_the_zoo_contains_only_networks_of_the_plan_and_their_cards() -> None:
    if not (ROOT / FOLDER).exists():
        pytest.skip("there is no zoo; make zoo trains it")
    names = {path.name for path in (ROOT / FOLDER).iterdir() if not path.name.startswith(".")}
    assert names <= {f"{network.name}.{suffix}" for network in PLAN for suffix in ("safetensors", "md")}
    assert {path.with_suffix(".md").name for path in SHIPPED} == {name for name in names if name.endswith(".md")}


@needs_zoo
@pytest.mark.parametrize("network", PLAN, ids=lambda network: network.name)
def test_a_shipped_network_matches_the_plan_and_its_card(network: Network) -> None:
    path = ROOT / network.path
    if not path.exists():
        pytest.skip(f"{network.name} is not trained")
    assert path.stat().st_size <= MAX_FILE_BYTES
    check_network(network, path)
    module, _, record = load_checkpoint(path)
    assert mask_digest(defect_masks(module)) == read_metadata(path).mask_digest
    assert len(record.data_digest) == 16
    assert "cifar10" in record.data_source
    assert path.with_suffix(".md").read_text() == model_card(path)


def test_the_results_cover_all_test_images() -> None:
    if not RESULT.exists():
        pytest.skip("the zoo's table was not measured: python benchmarks/zoo_table.py --json docs/results/zoo_cifar10.json")
    result = json.loads(RESULT.read_text())
    assert (result["schema"], result["n"], result["quick"]) == (SCHEMA, 10_000, False)


@needs_zoo
def test_the_results_are_of_the_shipped_files() -> None:
    if not RESULT.exists():
        pytest.skip("the zoo's table was not measured: python benchmarks/zoo_table.py --json docs/results/zoo_cifar10.json")
    result = json.loads(RESULT.read_text())
    measured = {result["source"]["name"]: result["source"]["sha256"]}
    measured |= {name: entry["sha256"] for name, entry in result["networks"].items() if entry is not None}
    assert measured == {one.name: hashlib.sha256((ROOT / one.path).read_bytes()).hexdigest() for one in TABLE}


# Cards


def test_a_card_describes_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    spec = tiny_spec()
    module = build(spec)
    command = "train --dataset digits tiny.safetensors"
    save_checkpoint(path, module, spec, record_of(spec, accuracy=0.75, n_test=400, n_train=1600, epochs=3, command=command), half=True)
    card = model_card(path)
    assert card == model_card(path)
    assert card.startswith("# tiny\n")
    assert f"`{hashlib.sha256(path.read_bytes()).hexdigest()}`" in card
    assert f"{path.stat().st_size:,} bytes, weights as float16" in card
    assert f"{sum(parameter.numel() for parameter in module.parameters()):,} parameters" in card
    assert mask_digest(defect_masks(module)) in card
    # Wilson's interval of 300 of 400, calculated manually: 0.747622 +- 0.042299.
    assert "75.00% (300 of 400; Wilson 95 % interval 70.53% to 78.99%)" in card
    assert f"$ defensemble {command}\n" in card
    assert "Apache-2.0" in card


# The script


def fake_training(root: Path, calls: list[list[str]], *, status: int = 0) -> object:
    """Replace `defensemble train`, which takes minutes: write an untrained network of the plan, as float16."""

    def run(arguments: list[str]) -> int:
        calls.append(arguments)
        if status:
            return status
        network = next(network for network in PLAN if str(network.path) == arguments[-1])
        spec = tiny_spec(keep=network.keep, width=16, mask_seed=network.mask_seed or 0)
        record = record_of(spec, data="cifar10", seed=network.seed, epochs=network.epochs)
        save_checkpoint(root / arguments[-1], build(spec), spec, record, half=True)
        return 0

    return run


def test_only_unfinished_networks_are_trained_in_order(tmp_path: Path) -> None:
    calls: list[list[str]] = []
    run = fake_training(tmp_path, calls)
    train_all(PLAN[1:2], [], root=tmp_path, run=run)  # type: ignore[arg-type]
    train_all(PLAN[:3], ["--threads", "1"], root=tmp_path, run=run)  # type: ignore[arg-type]
    assert calls == [PLAN[1].arguments(), PLAN[0].arguments("--threads", "1"), PLAN[2].arguments("--threads", "1")]
    for network in PLAN[:3]:
        path = tmp_path / network.path
        assert path.with_suffix(".md").read_text() == model_card(path)
    card, earlier = (tmp_path / PLAN[0].path).with_suffix(".md"), tmp_path / "earlier.md"
    card.write_text("old")
    earlier.hardlink_to(card)
    train_all(PLAN[:1], [], root=tmp_path, run=run)  # type: ignore[arg-type]
    assert card.read_text() == model_card(tmp_path / PLAN[0].path)
    assert earlier.read_text() == "old", "replaced atomically, not overwritten"
    assert len(calls) == 3


def test_a_failed_training_ends_the_script_and_suggests_how_to_resume(tmp_path: Path) -> None:
    calls: list[list[str]] = []
    with raises(click.ClickException, "standard | exit status 1 | make zoo"):
        train_all(PLAN, [], root=tmp_path, run=fake_training(tmp_path, calls, status=1))  # type: ignore[arg-type]
    assert len(calls) == 1


def test_training_states(tmp_path: Path) -> None:
    network = PLAN[2]
    assert training_state(network, tmp_path) == "to do"
    folder = tmp_path / "runs/zoo/keep0.1"
    folder.mkdir(parents=True)
    (folder / STATE_FILE).touch()
    assert training_state(network, tmp_path) == "interrupted"
    (tmp_path / network.path).parent.mkdir(parents=True)
    (tmp_path / network.path).touch()
    assert training_state(network, tmp_path) == "finished"


def test_another_network_with_a_name_of_the_plan_is_rejected(tmp_path: Path) -> None:
    spec = tiny_spec(keep=0.5, width=16)
    path = tmp_path / "keep0.1.safetensors"
    save_checkpoint(path, build(spec), spec, record_of(spec))
    with pytest.raises(CheckpointError, match=r"keep0\.1"):
        check_network(PLAN[2], path)


def test_a_file_that_is_too_large_is_rejected(tmp_path: Path) -> None:
    network = PLAN[0]
    path = tmp_path / "standard.safetensors"
    spec = tiny_spec(keep=1.0, width=16)
    save_checkpoint(path, build(spec), spec, record_of(spec, data="cifar10", seed=0, epochs=12))
    with raises(CheckpointError, "2,000,000 | --half"):
        check_network(network, path)


def test_list_shows_the_commands_and_trains_nothing() -> None:
    script = ROOT / "benchmarks/zoo_training.py"
    done = subprocess.run([sys.executable, str(script), "--list", "--only", "keep0.7"], capture_output=True, text=True, check=True)
    assert re.match(r"keep0\.7: (finished|interrupted|to do)\n  defensemble train --dataset cifar10 --width 16 --keep 0\.7 ", done.stdout)


def test_without_data_both_remedies_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    monkeypatch.setattr("benchmarks.zoo_training.ROOT", tmp_path)
    monkeypatch.setattr("benchmarks.zoo_training.training_state", lambda network: "to do")
    done = CliRunner().invoke(main, ["--dataset", str(tmp_path / "nowhere")])
    assert done.exit_code == 1
    assert "DEFENSEMBLE_DATA_DIR" in done.output
    assert "the hub" in done.output
