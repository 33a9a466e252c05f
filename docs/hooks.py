"""Hooks of the site's build: the reference of the command line, and links that leave docs/."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

DOCS = Path(__file__).parent
CLI_MARKER = "<!-- the build writes the help of each verb here -->"
HELP_WIDTH = 86
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **kwargs: Any) -> str:
    """Return the Markdown of a page with the help of the command line, and without links to files outside of docs/.

    Args:
        markdown: The text of the page.
        page: The page, with its source file.
        kwargs: What mkdocs passes and this hook does not use.
    """
    markdown = without_outer_links(markdown, DOCS / page.file.src_uri)
    return markdown.replace(CLI_MARKER, cli_reference()) if CLI_MARKER in markdown else markdown


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


def commands(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Yield a command and, of a group, each command below it, with the words that call it."""
    yield words, command
    if isinstance(command, click.Group):
        for name, member in command.commands.items():
            if not member.hidden:
                yield from commands(f"{words} {name}", member)
