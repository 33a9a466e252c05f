"""The action of `defensemble probe suite`: several probes on the same images, cheapest first, and their worst case."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..._exceptions import InputError
from ...probes.base import Probe
from ...probes.foolbox_attacks import Boundary
from ...probes.noise import Noise
from ...probes.square import Square
from ...probes.suite import worst_case
from ...probes.transfer import Transfer
from ...results.result_file import check_writable
from ..notes import print_note
from .probe import ProbeArguments, finish, run_probe, show_and_write


def run_suite(arguments: ProbeArguments, surrogates: Sequence[Path], steps: int) -> None:
    """Run noise, transfer, Square and boundary, and write the result of each next to that of the suite.

    Args:
        arguments: The options that all probes have; `budget` is that of Square.
        surrogates: Checkpoints for the transferred examples; none: without them.
        steps: Steps of the boundary attack.

    Raises:
        click.ClickException: A model failed.
        click.exceptions.Exit: A rate is below its limit.
        InputError: The images, the models or the options do not fit together.
        OSError: A result cannot be written.
    """
    check_writable(arguments.out)
    console = Console(stderr=arguments.as_json)
    probes: list[Probe] = [Noise((8.0,), seed=arguments.seed)]
    if surrogates:
        examples = _next_to(arguments.out, "transfer").with_suffix(".examples")
        probes.append(Transfer(examples, tuple(surrogates), ("paper-table2-pgd",), seed=arguments.seed))
    else:
        print_note("without --surrogate, the suite has no transferred examples")
    if arguments.answers == "probabilities":
        probes.append(Square(queries=arguments.budget or Square.queries, seed=arguments.seed))
    else:
        print_note(f"without probabilities (--answers {arguments.answers}), the suite has no Square attack")
    probes.append(Boundary(steps=steps, epsilons=(0.5,), seed=arguments.seed))
    for probe in probes:
        probe.settings()  # reads the surrogates: what is wrong with them is an error before the first query
    own = [_own_arguments(probe, arguments) for probe in probes]
    if arguments.resume and not any(one.resume for one in own):
        raise InputError(f"there is no unfinished suite of {arguments.out}: omit --resume, or pass the --out of the interrupted one")
    # The ledgers stay until the suite is complete: with --resume, each checks that it is of the same run.
    outcomes = [run_probe(probe, one, console=console, keeps_ledger=True) for probe, one in zip(probes, own, strict=True)]
    suite = worst_case(outcomes, {outcome.probe: outcome.conditions[-1].name for outcome in outcomes})
    show_and_write(suite, arguments, console, [] if suite.failures else [one.ledger for one in own])
    finish(suite, arguments)


def _next_to(out: Path, probe: str) -> Path:
    return out.with_name(f"{out.stem}-{probe}{out.suffix}")


def _own_arguments(probe: Probe, arguments: ProbeArguments) -> ProbeArguments:
    """Return the arguments of one probe, which is resumed if it has begun."""
    out = _next_to(arguments.out, probe.name)
    own = dataclasses.replace(arguments, out=out, as_json=False, budget=arguments.budget if probe.name == "square" else None)
    return dataclasses.replace(own, resume=arguments.resume and own.ledger.exists())
