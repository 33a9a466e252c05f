"""Progress bars that several commands share: drawn on a terminal only, cleared at their end, and silenced by `--quiet`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from .notes import shows_progress


class RateColumn(ProgressColumn):
    """How fast it goes.

    Example:
        >>> progress_bar(console, MofNCompleteColumn(), RateColumn("images"))
    """

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Return the speed of the last seconds."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} {self._unit}/s", style="progress.data.speed")


def progress_bar(console: Console, *columns: ProgressColumn, shown: bool = True) -> Progress:
    """Return a bar with a description and the time left.

    Args:
        console: Where to draw.
        columns: What to show after the bar; none: the finished number and the total.
        shown: Whether to draw at all.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),  # names of models and files
        BarColumn(),
        *(columns or (MofNCompleteColumn(),)),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Else rich would print standard output to the console of the bar, standard error, even if it goes to a file.
        redirect_stdout=sys.stdout.isatty(),
        disable=not (shown and console.is_terminal and shows_progress()),
    )


def line_printer(console: Console) -> Callable[[str], None]:
    """Return a function that prints a line above the progress bar of `console`; `--quiet` silences it."""
    if not shows_progress():
        return lambda text: None
    return partial(console.print, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def named_bars(console: Console, *, shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """Draw a bar for each reported name; yield a function of the name, the finished number and the total."""
    with progress_bar(console, shown=shown) as bar:
        tasks: dict[str, TaskID] = {}

        def on_progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total)

        yield on_progress
