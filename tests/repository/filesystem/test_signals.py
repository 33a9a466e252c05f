"""An interrupt during a transaction: all files or none are written, no staging folder is left, and the outcome is reported."""

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

FUNCTIONS = (*CALLS, (shutil, "rmtree"), (os, "rmdir"))


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


class Interrupts:
    """Interrupts this process before or after the n-th call that changes a disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool) -> None:
        self.calls, self.at, self.after = 0, at, after
        for owner, name in FUNCTIONS:
            monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name)))

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            is_chosen = self.calls == self.at
            if is_chosen and not self.after:
                signal.raise_signal(signal.SIGINT)
            result = function(*arguments, **options)
            if is_chosen and self.after:
                signal.raise_signal(signal.SIGINT)
            return result

        return counted


def outcomes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, old: dict[str, bytes], new: dict[str, bytes], act: Callable[[Path], None], *, after: bool
) -> list[bool]:
    """Return whether an interrupt at each call stopped `act`. Fail if the files do not match, or a staging folder is left."""
    template = folder / "template"
    write_files(template, old)
    stopped = []
    for at in range(1, 100):
        repository = folder / str(at) / "repository"
        shutil.copytree(template, repository)
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
    raise AssertionError("the calls do not end")


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_at_any_call_undoes_the_write_or_comes_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    stopped = outcomes(tmp_path, monkeypatch, FIRST, {**FIRST, **SECOND}, lambda repository: write_files(repository, SECOND), after=after)
    assert len(stopped) > 15
    assert True in stopped
    assert stopped == sorted(stopped, reverse=True), "after the first late interrupt, all are late"


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_at_any_call_undoes_the_removal_or_comes_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    old = FIRST | {"a/configs/x.pbtxt": b"x", "b/configs/x.pbtxt": b"x"}
    act = lambda repository: remove_files(repository, ["a/configs/x.pbtxt", "b/configs/x.pbtxt"])  # noqa: E731
    stopped = outcomes(tmp_path, monkeypatch, old, FIRST, act, after=after)
    assert True in stopped
    assert stopped == sorted(stopped, reverse=True)


def test_a_custom_handler_receives_a_late_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        received.append(number)

    signal.signal(signal.SIGINT, handler)
    remove = shutil.rmtree

    def interrupted(path: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        assert received == []
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    write_files(tmp_path / "repository", FIRST)
    assert received == [signal.SIGINT]


def test_a_late_interrupt_is_not_raised_by_a_handler_marked_as_raising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    handler.raises_keyboard_interrupt = True  # type: ignore[attr-defined]  # as the handler of the `defensemble` script
    signal.signal(signal.SIGINT, handler)
    remove = shutil.rmtree

    def interrupted(path: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    write_files(tmp_path / "repository", FIRST)
    assert content(tmp_path / "repository") == FIRST


def test_an_outer_defer_sigint_raises_a_late_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = shutil.rmtree
    messages: list[str] = []

    def interrupted(path: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        remove(path)

    def build() -> None:
        with defer_sigint():
            write_files(tmp_path / "repository", FIRST)
            messages.append("written")

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build()
    assert messages == ["written"], "the committed work is reported first"


def test_other_threads_write_without_interrupts(tmp_path: Path) -> None:
    thread = threading.Thread(target=write_files, args=(tmp_path / "repository", FIRST))
    thread.start()
    thread.join()
    assert content(tmp_path / "repository") == FIRST
