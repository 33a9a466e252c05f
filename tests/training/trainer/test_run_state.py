"""Killed, interrupted and failed runs resume with the same result."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from defensemble_training import (
    Compute,
    Dataset,
    DivergedError,
    Drop,
    RunFolder,
    TrainingError,
    TrainingProgress,
    UncheckedContentWarning,
    load_checkpoint,
    recipe_from_preset,
    train,
)
from defensemble_training.trainer.run_state import STATE_FILE, RunState, load_state, save_state
from tests.support.bars import bars_dataset
from tests.support.facts import assert_facts, raises
from tests.support.untrained import tiny_spec

EPOCHS = 4


@pytest.fixture(scope="module")
def bars() -> Dataset:
    return bars_dataset()


class Killed(Exception):  # noqa: N818
    """Ends a run in the callback of a step, like a kill."""


def run(bars: Dataset, folder: Path, *, kill_at: int | None = None, spec: dict[str, Any] | None = None, **changes: Any) -> bytes:
    def on_progress(progress: TrainingProgress) -> None:
        if progress.step == kill_at:
            raise Killed

    recipe = recipe_from_preset("fast", **{"epochs": EPOCHS, "batch_size": 16, "choose": "best", "held_out": 10, **changes})
    run_folder = RunFolder(folder, resume=True, save_every_s=0.0)
    compute = Compute("cpu", threads=1)
    module, _ = train(tiny_spec(**(spec or {})), bars, recipe=recipe, compute=compute, run=run_folder, on_progress=on_progress)
    return b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values())


def history(folder: Path) -> list[dict[str, Any]]:
    state = load_state(folder)
    assert state is not None
    return [{key: value for key, value in row.items() if key != "seconds"} for row in state.history]


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        pytest.param({}, {}, marks=pytest.mark.slow),
        ({"keep": 1.0, "drop": Drop("drop_block", 0.5, (1, 2))}, {"label_smoothing": 0.1}),
        pytest.param({}, {"adversarial": "adversarial-training"}, marks=pytest.mark.slow),
        pytest.param({"drop": Drop("spatial_dropout", 0.5, (3, 4))}, {}, marks=pytest.mark.slow),
        pytest.param({"keep": 1.0}, {"adversarial": "adversarial-training"}, marks=pytest.mark.slow),
    ],
    ids=["masks", "DropBlock and label smoothing", "masks, adversarial", "masks and SpatialDropout", "standard, adversarial"],
)
def test_interrupted_run_resumes_bit_for_bit(bars: Dataset, tmp_path: Path, spec: dict[str, Any], changes: dict[str, Any]) -> None:
    expected = run(bars, tmp_path / "whole", spec=spec, **changes)
    steps = len(history(tmp_path / "whole")) * 4
    assert steps == EPOCHS * 4
    for kill_at in (1, 4, 6, 11, steps):
        with pytest.raises(Killed):
            run(bars, tmp_path / "ended", kill_at=kill_at, spec=spec, **changes)
    assert run(bars, tmp_path / "ended", spec=spec, **changes) == expected
    assert history(tmp_path / "ended") == history(tmp_path / "whole")
    events = [json.loads(line)["event"] for line in (tmp_path / "ended/log.jsonl").read_text().splitlines()]
    assert (events.count("start"), events.count("resume")) == (2, 4), "the first kill, at step 1, is before a state was saved"
    assert events[-1] == "end"
    assert (tmp_path / "ended/learning_curve.png").read_bytes().startswith(b"\x89PNG")


def start_training(folder: Path, *options: str) -> subprocess.Popen[str]:
    arguments = ["--width", "2", "--epochs", "12", "--batch-size", "64", "--threads", "1", "--resume", *options, "a.safetensors"]
    command = [sys.executable, "-m", "defensemble", "train", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def tensors(path: Path) -> dict[str, bytes]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}


def wait_for_state(folder: Path, epochs: int) -> None:
    """Wait until a run has saved a number of epochs."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        state = load_state(folder)
        if state is not None and len(state.history) >= epochs:
            return
        time.sleep(0.01)
    raise AssertionError("no state was saved in time")


@pytest.mark.slow
def test_killed_run_resumes_bit_for_bit_and_sigint_prints_the_command(tmp_path: Path) -> None:
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    whole.mkdir()
    ended.mkdir()
    with start_training(whole) as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors

    with start_training(ended) as process:
        wait_for_state(ended / "a.run", 2)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL
    assert not (ended / "a.safetensors").exists()
    with start_training(ended) as process:
        wait_for_state(ended / "a.run", 5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("continue with: ")]
    assert "interrupted" in errors
    assert "train --width 2 --epochs 12" in line
    assert "--resume" in line
    with start_training(ended) as process:
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert "wrote a.safetensors" in printed
    assert tensors(ended / "a.safetensors") == tensors(whole / "a.safetensors")
    assert not (ended / "a.run" / STATE_FILE).exists(), "the state of a completed run is removed"
    events = [json.loads(line) for line in (ended / "a.run/log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events if event["event"] != "epoch"] == ["start", "resume", "interrupted", "resume", "end"]
    epochs = [event["epoch"] for event in events if event["event"] == "epoch"]
    assert sorted(set(epochs)) == list(range(1, 13))
    with start_training(ended) as process:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
    assert_facts(errors, "a.safetensors | resume")
    with start_training(ended, "--seed", "5") as process:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
    assert_facts(errors, "a.safetensors | seed | 0 | 5")


def test_folder_of_another_run_is_rejected_and_unchanged(bars: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(bars, tmp_path, kill_at=9)
    before = (tmp_path / STATE_FILE).read_bytes()
    with raises(TrainingError, "spec.keep | 0.3 | 0.5"):
        run(bars, tmp_path, spec={"keep": 0.5})
    with pytest.raises(TrainingError, match=r"recipe.epochs was 4, now 7"):
        run(bars, tmp_path, epochs=7)
    with pytest.raises(TrainingError, match=r"interrupted .*step \d+\b.*--resume"):
        train(tiny_spec(), bars, run=RunFolder(tmp_path), compute=Compute("cpu"))
    assert (tmp_path / STATE_FILE).read_bytes() == before


@pytest.mark.slow
def test_second_process_in_a_run_folder_is_rejected_and_the_first_continues(tmp_path: Path) -> None:
    with start_training(tmp_path, "--epochs", "200") as process:
        wait_for_state(tmp_path / "a.run", 1)
        with start_training(tmp_path, "--force") as other:
            _, errors = other.communicate(timeout=60)
        assert other.returncode == 1
        assert_facts(errors, "a.run | --run")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert load_state(tmp_path / "a.run") is not None


def test_second_run_in_a_locked_folder_is_rejected(bars: Dataset, tmp_path: Path) -> None:
    messages = []

    def on_progress(progress: TrainingProgress) -> None:
        if progress.step == 1:
            with pytest.raises(TrainingError, match=re.escape(str(tmp_path))) as caught:
                run(bars, tmp_path)
            messages.append(str(caught.value))

    recipe = recipe_from_preset("fast", epochs=1, batch_size=16)
    train(tiny_spec(), bars, recipe=recipe, compute=Compute("cpu", threads=1), run=RunFolder(tmp_path), on_progress=on_progress)
    (message,) = messages
    assert "another run" in message


def test_log_of_a_finished_run_is_appended_to(bars: Dataset, tmp_path: Path) -> None:
    for seed in (1, 2):
        recipe = recipe_from_preset("fast", epochs=1, batch_size=16)
        run_folder = RunFolder(tmp_path)
        train(tiny_spec(), bars, recipe=recipe, seed=seed, compute=Compute("cpu", threads=1), run=run_folder)
        run_folder.finish()
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in events if row["event"] == "start"] == [1, 2]


def some_state(folder: Path) -> Path:
    momentum = {"a": torch.arange(4.0)}
    save_state(
        folder, RunState({"seed": 1}, 3, 1.5, (0.5, 1, 2), [{"epoch": 1}], 0.5, {"a": torch.ones(4), "n": torch.tensor(3)}, momentum)
    )
    return folder / STATE_FILE


@given(fraction=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_flipped_bit_in_a_state_is_detected(tmp_path: Path, fraction: float, bit: int) -> None:
    path = some_state(tmp_path)
    content = bytearray(path.read_bytes())
    content[int(fraction * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=re.escape(str(path))):
        load_state(tmp_path)


def test_state_without_digest_is_read_with_a_warning(tmp_path: Path) -> None:
    path = some_state(tmp_path)
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["defensemble.run"])
    del metadata["content_digest"]
    new = load_state(tmp_path)
    save_file(load_file(path), path, {"defensemble.run": json.dumps({**metadata, "format": 1})})
    with pytest.warns(UncheckedContentWarning, match=STATE_FILE):
        old = load_state(tmp_path)
    assert old is not None
    assert new is not None
    assert (old.identity, old.step, old.history) == (new.identity, new.step, new.history)
    assert torch.equal(old.momentum["a"], new.momentum["a"])


@pytest.mark.parametrize("damage", ["cut", "emptied", "another file"])
def test_damaged_state_is_rejected(bars: Dataset, tmp_path: Path, damage: str) -> None:
    with pytest.raises(Killed):
        run(bars, tmp_path, kill_at=9)
    state = tmp_path / STATE_FILE
    content = state.read_bytes()
    state.write_bytes({"cut": content[: len(content) // 2], "emptied": b"", "another file": b"{}" * 100}[damage])
    with pytest.raises(TrainingError, match="damaged"):
        run(bars, tmp_path)


def test_diverged_run_saves_the_last_good_checkpoint(bars: Dataset, tmp_path: Path) -> None:
    def poison(progress: TrainingProgress) -> None:
        if progress.epoch == 3:
            bars_poisoned.train.pixels[:] = float("nan")

    bars_poisoned = bars_dataset()
    recipe = recipe_from_preset("fast", epochs=8, batch_size=16)
    compute = Compute("cpu", threads=1)
    from defensemble_training.trainer.device_data import DeviceDataset

    class Poisoned(DeviceDataset):
        def __getitem__(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            _, labels = super().__getitem__(indices)
            return torch.from_numpy(bars_poisoned.train.pixels)[indices], labels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("defensemble_training.trainer.loop.DeviceDataset", Poisoned)
        with raises(DivergedError, "nan | epoch 3 | epoch 2 | last_good"):
            train(tiny_spec(), bars_poisoned, recipe=recipe, compute=compute, run=RunFolder(tmp_path), on_progress=poison)
    _, spec, record = load_checkpoint(tmp_path / "last_good.safetensors")
    assert spec == tiny_spec()
    assert record.epochs == 2
    events = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert events == ["start", "epoch", "epoch", "failed"]
