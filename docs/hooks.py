"""Hooks of the site's build: references of commands and presets, an example of a prediction, and links that leave docs/."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

DOCS = Path(__file__).parent
CLI_MARKER = "<!-- the build writes the help of each verb here -->"
PREDICTION_MARKER = "<!-- the build writes the table of a prediction here -->"
PRESETS_MARKER = "<!-- the build writes the tables of presets here -->"
HELP_WIDTH = 86
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **kwargs: Any) -> str:
    """Return the Markdown of a page with what the build writes, and without links to files outside of docs/.

    Args:
        markdown: The text of the page.
        page: The page, with its source file.
        kwargs: What mkdocs passes and this hook does not use.
    """
    markdown = without_outer_links(markdown, DOCS / page.file.src_uri)
    for marker, write in ((CLI_MARKER, cli_reference), (PREDICTION_MARKER, example_prediction), (PRESETS_MARKER, attack_presets)):
        if marker in markdown:
            markdown = markdown.replace(marker, write())
    return markdown


def without_outer_links(markdown: str, page: Path) -> str:
    """Return the Markdown with links to files outside of docs/ replaced by their text: these files are not part of the site."""

    def replaced(link: re.Match[str]) -> str:
        target = (page.parent / link[2]).resolve()
        return link[0] if target.is_relative_to(DOCS) else link[1]

    return _LINK.sub(replaced, markdown)


def cli_reference() -> str:
    """Return the help of `defensemble` and of each verb, as Markdown."""
    from defensemble.cli import cli

    sections = []
    for words, command in commands("defensemble", cli):
        with command.context_class(command, info_name=words, terminal_width=HELP_WIDTH, max_content_width=HELP_WIDTH) as context:
            sections.append(f"## {words}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(sections)


def example_prediction() -> str:
    """Return a prediction of two images by two members, as a notebook shows it."""
    import numpy as np

    from defensemble import Prediction

    members = np.array([[[0.93, 0.05, 0.02], [0.62, 0.31, 0.07]], [[0.95, 0.03, 0.02], [0.20, 0.75, 0.05]]], np.float32).transpose(1, 0, 2)
    average = members.mean(axis=1)

    def entropy(probabilities: Any) -> Any:
        return -(probabilities * np.log(probabilities)).sum(axis=-1)

    received = {
        "probabilities": average,
        "mutual_information": entropy(average) - entropy(members).mean(axis=1),
        "member_probabilities": members,
    }
    prediction = Prediction("ensemble", ("cat", "dog", "frog"), received, "1", "5b5d7e54-7a1-3", 0.0062, "http://localhost:8000")
    return prediction._repr_html_()


def attack_presets() -> str:
    """Return the presets of attacks, and those of several attacks, as tables in Markdown."""
    from defensemble_training.attacks.presets import ATTACKS, PAPER_PRESETS

    rows = ["| attack | algorithm | epsilon | steps | step size | setting of |", "|---|---|---|---|---|---|"]
    for attack in ATTACKS.values():
        unit, scale = ("", 1) if attack.algorithm == "cw" else ("/255", 255)
        epsilon, step = ("-" if size is None else f"{scale * size:.3g}{unit}" for size in (attack.epsilon, attack.step_size))
        kappa = "" if attack.confidence is None else f"; kappa {attack.confidence:g}"
        rows.append(f"| `{attack.name}` | {attack.algorithm} | {epsilon} | {attack.steps or 1} | {step} | {attack.paper}{kappa} |")
    rows += ["", "| preset | attacks | images in the paper |", "|---|---|---|"]
    for preset in PAPER_PRESETS.values():
        if preset.name != f"paper-{preset.attacks[0].name}":
            attacks = ", ".join(f"`{attack.name}`" for attack in preset.attacks)
            rows.append(f"| `{preset.name}` | {attacks} | {preset.n_images or 'all test images, or not stated'} |")
    return "\n".join(rows)


def commands(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Yield a command and, of a group, each command below it, with the words that call it."""
    yield words, command
    if isinstance(command, click.Group):
        for name, member in command.commands.items():
            if not member.hidden:
                yield from commands(f"{words} {name}", member)
