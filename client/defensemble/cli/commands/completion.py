"""`defensemble completion`: print the shell completion script."""

from __future__ import annotations

import click
import cloup

from ..choices import SHELLS
from ..verb import Verb


@cloup.command("completion", cls=Verb, short_help="Print the shell completion script.")
@cloup.argument("shell", type=click.Choice(SHELLS), help="The shell to complete in.")
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    r"""Print a script that completes verbs, options, choices and paths.

    Load it when the shell starts:

    \b
      ~/.bashrc                   eval "$(defensemble completion bash)"
      ~/.zshrc                    eval "$(defensemble completion zsh)"
      ~/.config/fish/config.fish  defensemble completion fish | source

    \b
    Examples:
      defensemble completion bash
      defensemble completion zsh
      defensemble completion fish
    """
    from click.shell_completion import get_completion_class

    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(context.find_root().command, {}, "defensemble", "_DEFENSEMBLE_COMPLETE").source())
