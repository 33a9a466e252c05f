"""Measure targets with a probe."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError
from ..results.provenance import package_version
from .base import ADVERSARIAL, CLEAN, LabelledImages, Probe, QueryAttack, digest_of_all
from .ledger import Ledger
from .options import Progress, RunOptions
from .outcome import ProbeOutcome
from .run import Run, TargetRun
from .targets import Target

_PACKAGES = ("defensemble", "numpy", "foolbox")  # another version may ask other queries, to which stored answers do not belong


def measure(
    probe: Probe,
    targets: Sequence[Target],
    data: LabelledImages,
    *,
    rows: NDArray[np.int64] | None = None,
    options: RunOptions | None = None,
    ledger: Path | None = None,
    resume: bool = False,
    class_names: Sequence[str] = (),
    source: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> ProbeOutcome:
    """Run a probe on targets.

    Args:
        probe: The probe.
        targets: The targets, each with a name of its own. A target that fails is not asked again; the others go on.
        data: The images, labelled with the targets' classes.
        rows: (n,) positions of the images in their dataset; None for 0 to n - 1.
        options: How to run it.
        ledger: Folder of the ledger; None for a temporary one.
        resume: Whether to continue the run in that folder.
        class_names: Names of the classes.
        source: Where the images are from, as JSON.
        provenance: Hardware, versions and server, as JSON.
        progress: Called while it runs.

    Raises:
        InputError: An argument is invalid, or does not match the run that is resumed.
        OSError: The ledger cannot be written.

    Example:
        >>> outcome = measure(Noise((8, 16)), [FunctionTarget("mine", classify)], LabelledImages(images, labels))
        >>> outcome.json()["targets"][0]["conditions"][0]["accuracy"]
    """
    options, progress = options or RunOptions(), progress or Progress()
    _check_targets(probe, targets)
    rows = np.asarray(np.arange(len(data)) if rows is None else rows)
    if not isinstance(probe.seed, (int, np.integer)) or probe.seed < 0:
        raise InputError(f"seed must be an integer of 0 or more, got {probe.seed!r}")
    if rows.shape != (len(data),) or rows.dtype.kind not in "iu" or rows.min() < 0:
        raise InputError(f"rows must be {len(data)} positions from 0 on, one per image, got {rows.dtype} of shape {rows.shape}")
    if class_names and data.labels.max() >= len(class_names):
        raise InputError(f"labels must be below {len(class_names)}, the number of class_names; got {data.labels.max()}")
    rows = rows.astype(np.int64)
    _check_conditions(probe)
    plan = {
        "probe": probe.name,
        "settings": probe.settings(),
        "input": options.input,
        "answers": [target.answers for target in targets],
        "budget": options.budget,
        "shard": options.shard,
        "images_sha256": data.digest,
        "rows_sha256": digest_of_all(rows),
        "targets": [target.name for target in targets],
        "versions": {name: package_version(name) for name in _PACKAGES},
    }
    with ExitStack() as stack:
        folder = Path(ledger) if ledger else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="defensemble-")))
        book = stack.enter_context(Ledger(folder, plan, is_resumed=resume))
        for target in targets:
            stack.callback(target.counts.reset)  # the target may be measured again
        run = Run(probe, data, rows, options, book, progress, [TargetRun(number, target) for number, target in enumerate(targets)])
        run.work()
        return run.outcome(tuple(class_names), source or {}, provenance or {})


def _check_conditions(probe: Probe) -> None:
    names = [CLEAN, ADVERSARIAL, *(condition.name for condition in probe.conditions())]
    if len(set(names)) != len(names):
        raise InputError(f"conditions must have different names, and others than {CLEAN} and {ADVERSARIAL}; got {', '.join(names[2:])}")


def _check_targets(probe: Probe, targets: Sequence[Target]) -> None:
    if not isinstance(targets, Sequence) or not all(isinstance(target, Target) for target in targets):
        raise InputError(f"targets must be a list of targets, such as [FunctionTarget('mine', function)]; got {targets!r:.200}")
    if not targets:
        raise InputError("no targets to probe: pass at least one")
    names = [target.name for target in targets]
    if len(set(names)) != len(names):
        raise InputError(f"targets must have different names, got {', '.join(names)}")
    if isinstance(probe, QueryAttack) and probe.answer == "margin":
        for target in targets:
            if target.answers != "probabilities":
                raise InputError(
                    f"{probe.name} needs probabilities, but {target.name!r} answers {target.answers}: use --answers probabilities"
                )
