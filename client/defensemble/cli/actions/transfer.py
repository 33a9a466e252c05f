"""The action of `defensemble probe transfer` and `adaptive`: choose the file of examples and the number of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..._exceptions import InputError
from ...probes.transfer import Transfer
from ..notes import print_note
from .probe import ProbeArguments, finish, run_probe


def run_transfer(
    kind: type[Transfer],
    arguments: ProbeArguments,
    *,
    surrogates: Sequence[Path],
    presets: Sequence[str],
    epsilons: Sequence[float] | None,
    average: str | None,
    examples: Path | None,
    **settings: Any,
) -> None:
    """Craft examples or reuse a file of them, measure served models, print the table and write the result.

    Args:
        kind: The probe.
        arguments: The options that all probes have.
        surrogates: Checkpoints.
        presets: The paper's presets.
        epsilons: Values of epsilon in place of the presets', in 1/255.
        average: What surrogates average, if they are one source.
        examples: File of the examples; None for one next to the result.
        settings: More settings of the probe.

    Raises:
        click.ClickException: A model failed, or is below a limit.
        InputError: The images, the models or the options do not fit together.
        OSError: A file cannot be read or written.
    """
    path = examples or arguments.out.with_suffix(".examples")
    if path.resolve() == arguments.out.resolve():
        raise InputError(f"--examples and --out are the same file, {path}: the result needs one of its own")
    arguments = dataclasses.replace(arguments, limit=arguments.limit or _default_limit(path, arguments, presets))
    probe = kind(
        path,
        tuple(surrogates),
        tuple(presets),
        tuple(epsilons or ()),
        average or "none",  # type: ignore[arg-type]
        seed=arguments.seed,
        **settings,
    )
    finish(run_probe(probe, arguments), arguments)


def _default_limit(path: Path, arguments: ProbeArguments, presets: Sequence[str]) -> int | None:
    """Return the number of images in a complete file or, for a new one, the smallest number that the paper uses for the presets."""
    from defensemble_training import ExamplesError, paper_preset, read_examples

    if path.exists() and arguments.shard is None:
        try:
            return len(read_examples(path).rows)
        except ExamplesError:  # incomplete: as for a new file
            pass
    counts = {name: count for name in presets if (count := paper_preset(name).n_images) is not None}
    if not counts:
        return None
    name = min(counts, key=lambda name: counts[name])
    print_note(f"--limit {counts[name]}: the paper's number of images for {name}; with fewer images, all are used")
    return counts[name]
