"""`defensemble probe`: measure the robustness of served models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import cloup

from ..choices import NOISE_KINDS, NORMS
from ..options import EXISTING_PATH, NumberRange, numbers
from ..probe_options import budget_option, probe_options
from ..verb import VerbGroup
from .probe_images import corruptions, cue_conflict, folders, shuffle
from .probe_results import compare, merge
from .probe_transfer import adaptive, transfer

if TYPE_CHECKING:
    from pathlib import Path

    from ..actions.probe import ProbeArguments


_WALK = "Steps of the walk. Queries for one image: about 55 to begin, one for each step, and one more for every tenth step."
_PERTURBATIONS = cloup.Section("Without an attacker")
_TRANSFER = cloup.Section("Attacks with other networks")
_QUERIES = cloup.Section("Attacks by queries")
_RESULTS = cloup.Section("Results")


@cloup.group("probe", cls=VerbGroup, short_help="Measure the robustness of served models.")
def command() -> None:
    r"""Measure the robustness of served models over the network, as any client can.

    \b
    Examples:
      defensemble probe noise http://localhost:8000 --dataset digits
      defensemble probe transfer http://localhost:8000 --dataset cifar10 --surrogate checkpoints/surrogate.safetensors
      defensemble probe square http://localhost:8000 --dataset cifar10 --limit 50 --budget 2500
      defensemble probe compare before.json after.json
    """


@command.command("noise", short_help="Measure robustness to random noise.", section=_PERTURBATIONS)
@cloup.option_group(
    "Noise",
    click.option(
        "--sigmas",
        callback=numbers(float, "4,8,16"),
        metavar="A,B,...",
        help="Standard deviations of the noise, in 1/255.  [default: 1,2,4,8,12,16,20,24,28,32]",
    ),
    click.option("--kind", type=click.Choice(NOISE_KINDS), default="gaussian", help="Kind of noise."),
)
@probe_options("noise")
def noise(arguments: ProbeArguments, sigmas: tuple[float, ...] | None, **settings: Any) -> None:
    r"""Add noise to labelled images, and print the accuracy of each model at each noise level.

    Every model gets the same noisy images. The table counts all images; the JSON also has the rates of those that all models classify
    correctly without noise. Classes of the data and of the models are matched by name. Image files are read as in training.

    \b
    Examples:
      defensemble probe noise http://localhost:8000 --dataset digits
      defensemble probe noise http://localhost:8000 --dataset photos/test
      defensemble probe noise http://localhost:8000 --dataset test.npz --limit 100
    """
    from ...probes.noise import PAPER_SIGMAS, Noise
    from ..actions.probe import finish, run_probe

    finish(run_probe(Noise(sigmas or PAPER_SIGMAS, seed=arguments.seed, **settings), arguments), arguments)


@command.command("square", short_help="Attack with random squares (Square attack).", section=_QUERIES)
@cloup.option_group(
    "Attack",
    click.option("--norm", type=click.Choice(NORMS), default="linf", help="Norm of the perturbation."),
    click.option(
        "--epsilon", type=NumberRange(0), metavar="SIZE", help="Largest perturbation, in 1/255 for linf.  [default: 8 or, for l2, 0.5]"
    ),
    budget_option("5000"),
)
@probe_options("square")
def square(arguments: ProbeArguments, norm: str, epsilon: float | None) -> None:
    r"""Attack each image by random squares that raise the loss (arXiv 1912.00049); the attacker sees probabilities.

    \b
    Examples:
      defensemble probe square http://localhost:8000 --dataset cifar10 --limit 50 --budget 2500
    """
    from ...probes.square import Square
    from ..actions.probe import finish, run_probe

    bound = None if epsilon is None else epsilon / 255 if norm == "linf" else epsilon
    queries = arguments.budget or Square.queries  # the squares shrink on a schedule of this length
    attack = Square(norm=norm, epsilon=bound, queries=queries, seed=arguments.seed)  # type: ignore[arg-type]
    finish(run_probe(attack, arguments), arguments)


@command.command("boundary", short_help="Attack by walking along the decision boundary.", section=_QUERIES)
@cloup.option_group(
    "Attack",
    click.option("--steps", type=click.IntRange(min=1), metavar="N", default=5000, help=_WALK),
    budget_option("what --steps needs"),
)
@probe_options("boundary")
def boundary(arguments: ProbeArguments, steps: int) -> None:
    r"""Find the smallest l2 perturbation by Foolbox's boundary attack (arXiv 1712.04248); the attacker sees classes only.

    \b
    Examples:
      defensemble probe boundary http://localhost:8000 --dataset cifar10 --limit 50
      defensemble probe boundary http://localhost:8000 --dataset cifar10 --limit 50 --answers top-1
    """
    from ...probes.foolbox_attacks import Boundary
    from ..actions.probe import finish, run_probe

    finish(run_probe(Boundary(steps=steps, seed=arguments.seed), arguments), arguments)


@command.command("hopskipjump", short_help="Attack by estimated gradients at the decision boundary.", section=_QUERIES)
@cloup.option_group(
    "Attack",
    click.option("--norm", type=click.Choice(NORMS), default="l2", help="Norm of the perturbation."),
    click.option("--steps", type=click.IntRange(min=1), metavar="N", default=10, help="Steps of the attack; 10 are about 2,500 queries."),
    budget_option("what --steps needs"),
)
@probe_options("hopskipjump")
def hopskipjump(arguments: ProbeArguments, norm: str, steps: int) -> None:
    r"""Find the smallest perturbation by Foolbox's HopSkipJump attack (arXiv 1904.02144); the attacker sees classes only.

    \b
    Examples:
      defensemble probe hopskipjump http://localhost:8000 --dataset cifar10 --limit 50 --budget 2500
    """
    from ...probes.foolbox_attacks import HopSkipJump
    from ..actions.probe import finish, run_probe

    finish(run_probe(HopSkipJump(norm=norm, steps=steps, seed=arguments.seed), arguments), arguments)  # type: ignore[arg-type]


@command.command("suite", short_help="Run several probes, and count the worst case of each image.", section=_QUERIES)
@cloup.option_group(
    "Suite",
    click.option(
        "--surrogate",
        "surrogates",
        multiple=True,
        type=EXISTING_PATH,
        metavar="CHECKPOINT",
        help="Network to craft transferred examples on, not a member of any target. Repeatable.  [default: no transferred examples]",
    ),
    click.option("--steps", type=click.IntRange(min=1), metavar="N", default=5000, help="Steps of the boundary attack."),
    budget_option("5000"),
)
@probe_options("suite")
def suite(arguments: ProbeArguments, surrogates: tuple[Path, ...], steps: int) -> None:
    r"""Run noise (sigma 8/255), transferred examples (PGD, 8/255), Square (linf 8/255) and boundary (l2 0.5), the cheapest first.

    An image counts as correct in the worst case if it is under each of them. The result of each probe is written next to that of the suite,
    as suite-noise.json and so on; --resume continues where the suite was interrupted. --budget is that of Square.

    \b
    Examples:
      defensemble probe suite http://localhost:8000 --dataset cifar10 --limit 50 --surrogate checkpoints/surrogate.safetensors
    """
    from ..actions.probe_suite import run_suite

    run_suite(arguments, surrogates, steps)


command.add_command(corruptions, section=_PERTURBATIONS)
command.add_command(shuffle, section=_PERTURBATIONS)
command.add_command(folders, section=_PERTURBATIONS)
command.add_command(cue_conflict, section=_PERTURBATIONS)
command.add_command(transfer, section=_TRANSFER)
command.add_command(adaptive, section=_TRANSFER)
command.add_command(compare, section=_RESULTS)
command.add_command(merge, section=_RESULTS)
