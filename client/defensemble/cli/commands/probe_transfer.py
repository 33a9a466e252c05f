"""`defensemble probe transfer` and `defensemble probe adaptive`: examples that are crafted on surrogates."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import cloup

from ..choices import AVERAGES, PAPER_PRESETS
from ..options import PATH, numbers, with_options
from ..probe_options import probe_options
from ..verb import Verb

if TYPE_CHECKING:
    from ..actions.probe import ProbeArguments


def _crafting_options(preset: str, average_help: str, *more: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the options by which examples are crafted.

    Args:
        preset: The preset without `--preset`.
        average_help: Help of `--ensemble-of-surrogates`.
        more: More options.
    """
    return with_options(
        cloup.option_group(
            "Examples",
            click.option(
                "--surrogate",
                "surrogates",
                type=PATH,
                multiple=True,
                metavar="CHECKPOINT",
                help="Network that the attacker has, not a member of any target. Repeatable.",
            ),
            click.option(
                "--preset",
                "presets",
                type=click.Choice(PAPER_PRESETS),
                multiple=True,
                metavar="NAME",
                default=(preset,),
                help="Attack with the paper's settings, such as paper-pgd16, or all of a table, such as paper-table5. Repeatable.  "
                f"[default: {preset}]",
                show_default=False,
            ),
            click.option(
                "--epsilons",
                callback=numbers(float, "4,8,16"),
                metavar="A,B,...",
                help="Largest perturbations in 1/255, in place of the preset's; its steps grow in proportion.",
            ),
            click.option("--ensemble-of-surrogates", "average", type=click.Choice(AVERAGES), help=average_help),
            click.option(
                "--examples",
                type=PATH,
                metavar="FILE",
                help="File of the examples. It is written or continued if there are surrogates, and reused once it is complete.  "
                "[default: NAME.examples next to --out]",
            ),
            *more,
        )
    )


@cloup.command("transfer", cls=Verb, short_help="Attack with examples that are crafted on other networks.")
@_crafting_options("paper-table2", "Attack the average of all surrogates as one source.  [default: each of them]")
@probe_options("transfer")
def transfer(arguments: ProbeArguments, **settings: Any) -> None:
    r"""Craft adversarial examples on surrogate networks, send them to each model, and print its accuracy.

    The examples are crafted once, on all images, and cost one query an image. They can be sent to other targets later: with --examples
    FILE, no surrogates are needed. Without --limit, as many images are used as the file has or, for a new file, as the paper uses.

    \b
    Examples:
      defensemble probe transfer http://localhost:8000 --dataset cifar10 --surrogate checkpoints/surrogate.safetensors
      defensemble probe transfer http://localhost:8000 --dataset cifar10 --preset paper-pgd16 --surrogate a.safetensors --examples a.bin
      defensemble probe transfer http://localhost:8001 --dataset cifar10 --examples a.bin --out other.json
    """
    from ...probes.transfer import Transfer
    from ..actions.transfer import run_transfer

    run_transfer(Transfer, arguments, **settings)


@cloup.command("adaptive", cls=Verb, short_help="Attack with all knowledge of the defence but its masks and weights.")
@_crafting_options(
    "paper-pgd16",
    "Follow the gradient of this average of the surrogates only.  [default: of both, one after the other]",
    click.option(
        "--draws", type=click.IntRange(min=1), metavar="K", default=5, help="Draws of fresh masks, over which gradients are averaged."
    ),
)
@probe_options("adaptive")
def adaptive(arguments: ProbeArguments, **settings: Any) -> None:
    r"""Attack defective ensembles by defective surrogates with the same keep and other masks, and print whether the defence fell.

    The gradient goes through the average of the surrogates, as the ensemble is served, and is averaged over K draws of fresh masks.

    \b
    Examples:
      defensemble probe adaptive http://localhost:8000 --dataset cifar10 --surrogate b.safetensors --surrogate c.safetensors --limit 2000
    """
    from ...probes.adaptive import Adaptive
    from ..actions.transfer import run_transfer

    run_transfer(Adaptive, arguments, **settings)
