"""`defensemble train`: what it writes, and that it refuses before it works."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from defensemble.cli.commands.train import command
from defensemble_training import (
    CheckpointError,
    DataError,
    Drop,
    SpecError,
    TrainingError,
    defect_masks,
    load_checkpoint,
    mask_digest,
)
from tests.support.facts import assert_facts

QUICK = ["--width", "1", "--size", "8", "--epochs", "1", "--batch-size", "256", "--threads", "1"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_a_checkpoint_is_written_and_described(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    options = ["--keep", "0.6", "--blocks", "3,1", "--pattern", "shared", "--sampling", "exact", "--mask-seed", "4", "--seed", "2"]
    result = run(*QUICK, *options, path)
    assert result.exit_code == 0, result.output
    module, spec, record = load_checkpoint(path)
    assert (spec.keep, spec.blocks, spec.pattern, spec.sampling, spec.mask_seed) == (0.6, (1, 3), "shared", "exact", 4)
    assert (spec.width, spec.input_shape, record.seed, record.epochs, record.recipe["batch_size"]) == (1, (1, 8, 8), 2, 1, 256)
    assert f"test accuracy {record.accuracy:.4f} ({round(record.accuracy * 359)} of 359 images)" in result.stdout
    assert f"9 masks, digest {mask_digest(defect_masks(module))}" in result.stdout
    assert f"wrote {path}" in result.stdout
    assert "epoch 1/1: loss " in result.stderr
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a.run", path]
    assert sorted(file.name for file in (tmp_path / "a.run").iterdir()) == ["learning_curve.png", "log.jsonl"]


def test_keep_one_trains_a_standard_network(tmp_path: Path) -> None:
    result = run(*QUICK, "--keep", "1.0", tmp_path / "a.safetensors")
    assert result.exit_code == 0, result.output
    assert "standard network" in result.stdout


def test_an_existing_file_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("mine")
    result = run(*QUICK, path)
    assert result.exit_code == 1
    assert_facts(result.stderr, f"{path} | --force")
    assert "epoch" not in result.output
    assert path.read_text() == "mine"
    assert run(*QUICK, "--force", path).exit_code == 0
    load_checkpoint(path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--keep", "1.5"], SpecError, "keep | (0, 1] | 1.5"),
        (["--keep", "0"], SpecError, "keep | (0, 1] | 0.0"),
        (["--keep", "nan"], SpecError, "keep | (0, 1] | nan"),
        (["--size", "4"], DataError, "size | 8 | 128 | 4"),
        (["--blocks", "0,7"], SpecError, "blocks | 4 | (0, 7)"),
        (["--mask-seed", "-1"], SpecError, "mask_seed | 0 | -1"),
        (["--width", "0"], SpecError, "width | at least 1 | 0"),
        (["--epochs", "0"], SpecError, "epochs | at least 1 | 0"),
        (["--batch-size", "1"], SpecError, "batch_size | 2 | 1"),
        (["--learning-rate", "-1"], SpecError, "learning_rate | 1e+30"),
    ],
)
def test_bad_values_are_refused(tmp_path: Path, options: list[str], error: type[Exception], message: str) -> None:
    result = run(*QUICK, *options, tmp_path / "a.safetensors")
    assert result.exit_code != 0
    assert type(result.exception) is error
    assert result.exc_info is not None
    assert_facts(str(result.exception), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.pt"], ".safetensors | 'a.pt'"),
        (["--blocks", "0;1", "a.safetensors"], "0,1,2 | '0;1'"),
        (["--arch", "lenet", "a.safetensors"], "--arch | 'resnet18' | 'wrn32_4' | 'lenet'"),
        (["--dataset", "cifar11", "a.safetensors"], "--dataset | 'cifar11' | digits | cifar10"),
        (["--pattern", "pixel", "a.safetensors"], "--pattern | 'neuron', 'channel', 'shared' | 'pixel'"),
        (["--sampling", "poisson", "a.safetensors"], "--sampling | 'bernoulli', 'exact' | 'poisson'"),
        (["--keep", "much", "a.safetensors"], "'much' is not a valid float"),
        ([], "Missing argument 'OUTPUT.safetensors'"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert_facts(result.stderr, message)


def test_a_missing_folder_is_found_before_training(tmp_path: Path) -> None:
    result = run(*QUICK, tmp_path / "nowhere" / "a.safetensors")
    assert type(result.exception) is CheckpointError
    assert "epoch" not in result.output


def test_the_top_command_prints_one_line_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "defensemble", "train", "--keep", "2", str(tmp_path / "a.safetensors")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert_facts(done.stderr, "keep | (0, 1] | 2.0")
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_shows_loss_accuracy_and_time_left(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    arguments = [*QUICK, "--epochs", "2", str(tmp_path / "a.safetensors")]
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "defensemble", "train", *arguments], stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        # A terminal whose other end is gone answers with an error where a pipe would end.
        with suppress(OSError):
            while part := os.read(ours, 4096):
                shown += part
        os.close(ours)
        assert process.stdout is not None
        assert "test accuracy " in process.stdout.read()
        assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"epoch 1/2 .*loss \d+\.\d{3}  train accuracy [01]\.\d{3} .*left (\d+:\d\d:\d\d|-:--:--)", text), text
    last = text.rstrip().splitlines()[-1]
    assert re.search(r"epoch 2/2 .*loss \d+\.\d{3}  train accuracy [01]\.\d{3} .*left 0:00:00", last), text
    assert "epoch 2/2: loss" not in text, "a bar, not a line an epoch"


def test_a_run_that_is_interrupted_before_its_first_epoch_leaves_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    arguments = [*QUICK, "--epochs", "10000", str(path)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "defensemble", "train", *arguments], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("epoch 1/10000: loss ")
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=30) == 130
    assert "Error: interrupted after step" in rest
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == [tmp_path / "a.run"]


def test_a_log_for_tensorboard_on_request(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(*QUICK, "--epochs", "2", "--tensorboard", tmp_path / "board", tmp_path / "a.safetensors")
    assert result.exit_code == 0, result.output
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    told = [json.loads(line) for line in (tmp_path / "a.run/log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in told if row["event"] == "epoch"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, pytest.approx(losses[0])), (2, pytest.approx(losses[1]))]


def test_recipes_devices_and_baselines_are_options(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    options = ["--preset", "paper", "--momentum", "0.5", "--label-smoothing", "0.1", "--choose", "best", "--drop", "drop_block", "--half"]
    result = run(*QUICK, *options, "--size", "16", "--device", "cpu", path)
    assert result.exit_code == 0, result.output
    _, spec, record = load_checkpoint(path)
    assert spec.drop == Drop("drop_block", 0.9, (3, 4))
    recipe = record.recipe
    assert (recipe["schedule"], recipe["momentum"], recipe["label_smoothing"], recipe["choose"]) == ("steps", 0.5, 0.1, "best")
    assert (record.n_held_out, record.n_train) == (143, 1295)
    assert record.held_out_accuracy is not None
    assert path.stat().st_size < 60_000


def test_a_run_that_was_left_is_not_overwritten_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    shown = run(*QUICK, path)
    assert shown.exit_code == 0
    path.unlink()
    (tmp_path / "a.run/state.safetensors").write_bytes(b"cut off")
    refused = run(*QUICK, path)
    assert isinstance(refused.exception, TrainingError)
    assert "damaged" in str(refused.exception)
    assert run(*QUICK, "--force", path).exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--drop-keep", "0.5"], "--drop-keep | --drop-blocks"),
        (["--skip-damaged"], "--skip-damaged"),
    ],
)
def test_options_that_would_be_ignored_are_refused(tmp_path: Path, options: list[str], message: str) -> None:
    result = run(*QUICK, *options, tmp_path / "a.safetensors")
    assert result.exit_code == 2
    assert_facts(result.stderr, message)


def test_output_is_no_file_of_the_run(tmp_path: Path) -> None:
    result = run(*QUICK, "--run", tmp_path, tmp_path / "state.safetensors")
    assert result.exit_code == 1
    assert "file of the run" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_name_may_hold_what_pictures_take_for_mathematics(tmp_path: Path) -> None:
    assert run(*QUICK, tmp_path / "a$^$b.safetensors").exit_code == 0
    assert (tmp_path / "a$^$b.run/learning_curve.png").exists()
