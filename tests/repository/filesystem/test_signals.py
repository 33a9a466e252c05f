"""An interrupt while a plan is written: all of it or nothing, nothing left beside the repository, and an outcome that says which."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from defensemble_export import write_files
from defensemble_repository.filesystem.signals import defer_sigint
from defensemble_repository.transaction import remove_files
from tests.repository.test_transaction import CALLS, FIRST, SECOND, content

PLACES = (*CALLS, (shutil, "rmtree"), (os, "rmdir"))


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupts:
    """Interrupts this process at the n-th call that changes a disk, before it or after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool) -> None:
        self.calls, self.at, self.after = 0, at, after
        for place, name in PLACES:
            monkeypatch.setattr(place, name, self.wrap(getattr(place, name)))

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            now = self.calls == self.at
            if now and not self.after:
                signal.raise_signal(signal.SIGINT)
            result = function(*arguments, **named)
            if now and self.after:
                signal.raise_signal(signal.SIGINT)
            return result

        return counted


def outcomes(
    place: Path, monkeypatch: pytest.MonkeyPatch, old: dict[str, bytes], new: dict[str, bytes], act: Callable[[Path], None], *, after: bool
) -> list[bool]:
    """Whether an interrupt at each call in turn stopped `act`; fails where the files, or what is left, say otherwise."""
    made = place / "made"
    write_files(made, old)
    stopped = []
    for at in range(1, 100):
        repository = place / str(at) / "repository"
        shutil.copytree(made, repository)
        with monkeypatch.context() as patch:
            interrupts = Interrupts(patch, at, after=after)
            try:
                act(repository)
            except KeyboardInterrupt:
                stopped.append(True)
            else:
                stopped.append(False)
        assert content(repository) == (old if stopped[-1] else new), f"call {at}"
        assert os.listdir(repository.parent) == ["repository"], f"call {at}"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if interrupts.calls < at:
            return stopped
    raise AssertionError("it never ends")


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_at_any_call_undoes_all_or_comes_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    stopped = outcomes(tmp_path, monkeypatch, FIRST, {**FIRST, **SECOND}, lambda place: write_files(place, SECOND), after=after)
    assert len(stopped) > 15
    assert True in stopped
    assert stopped == sorted(stopped, reverse=True), "once too late, always too late"


@pytest.mark.parametrize("after", [False, True])
def test_a_removal_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    old = FIRST | {"a/configs/x.pbtxt": b"x", "b/configs/x.pbtxt": b"x"}
    act = lambda place: remove_files(place, ["a/configs/x.pbtxt", "b/configs/x.pbtxt"])  # noqa: E731
    stopped = outcomes(tmp_path, monkeypatch, old, FIRST, act, after=after)
    assert True in stopped
    assert stopped == sorted(stopped, reverse=True)


def test_a_program_s_own_handler_is_told_of_one_that_came_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        told.append(number)

    signal.signal(signal.SIGINT, handler)
    removed = shutil.rmtree

    def interrupted(path: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        assert told == []
        removed(path)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    write_files(tmp_path / "repository", FIRST)
    assert told == [signal.SIGINT]


def test_what_holds_around_it_hears_of_one_that_came_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed = shutil.rmtree
    said: list[str] = []

    def interrupted(path: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        removed(path)

    def build() -> None:
        with defer_sigint():
            write_files(tmp_path / "repository", FIRST)
            said.append("written")

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build()
    assert said == ["written"], "what took effect was said first"


def test_another_thread_is_not_interrupted_and_writes(tmp_path: Path) -> None:
    thread = threading.Thread(target=write_files, args=(tmp_path / "repository", FIRST))
    thread.start()
    thread.join()
    assert content(tmp_path / "repository") == FIRST
