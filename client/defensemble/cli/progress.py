"""Progress bars that several commands share: drawn on a terminal alone, and gone at their end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn


def progress_bar(console: Console, *columns: ProgressColumn, shown: bool = True) -> Progress:
    """A bar with a description and the time left; `columns` replace the number that is done."""
    middle = columns or (MofNCompleteColumn(),)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *middle,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )


@contextmanager
def named_bars(console: Console, *, shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each name that is reported, with what is done of it and of how many."""
    with progress_bar(console, shown=shown) as bar:
        tasks: dict[str, TaskID] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield on_progress
