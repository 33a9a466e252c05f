"""Craft adversarial examples into a file, batch by batch, so that a run that was killed continues."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..atomic_write import with_filename, write_atomic
from ..data.dataset import Images, Labels
from ..errors import ExamplesError, SpecError
from ..evaluation import check_images, device_of, in_eval_mode, predict_classes
from ..validation import checked_integer
from .examples import (
    FOOLED,
    FOOLED_8_BIT,
    Examples,
    Layout,
    SourceAttack,
    checksum,
    fingerprint_to_values,
    header_line,
    image_digest,
    read_examples,
    read_layout,
)
from .presets import AttackPreset
from .redrawn_masks import RedrawnMasks
from .sanity import CHECKED_IMAGES, attack_checks
from .surrogates import Surrogate, in_order_of, source_of
from .transfer import attack_rows, round_to_8_bits

_VERSIONS_OF = ("defensemble", "foolbox", "numpy", "torch")
_SEARCHED_IMAGES, _FINGERPRINT_IMAGES = 512, 8
OnProgress = Callable[[str, int, int], None]


def craft(
    path: str | os.PathLike[str],
    surrogates: Sequence[Surrogate],
    attacks: Sequence[SourceAttack],
    images: Images,
    labels: Labels,
    *,
    rows: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    batch_size: int = 128,
    seed: int = 0,
    on_progress: OnProgress = lambda name, done, total: None,
) -> Examples:
    """Craft adversarial examples into a file, or continue a file of the same attacks, surrogates and images.

    All images are attacked, also those that the source misclassifies without an attack. Each batch is durable before the next one begins.
    A continued file has the same bytes as an uninterrupted one, on the same hardware with the same number of threads. FGSM, PGD and MIFGSM
    treat each image independently of its batch, up to rounding; CW does not. A complete file is returned as it is.

    Args:
        path: The file.
        surrogates: The networks, of different names. Their parameters do not change.
        attacks: The attacks, of different names.
        images: float32 (n, C, H, W) in [0, 1].
        labels: True classes, integers (n,).
        rows: Positions of the images in their dataset; by default 0 to n - 1.
        class_names: Names of the classes in the order of the labels; by default those of the first surrogate.
        batch_size: Images per batch, at least 1.
        seed: Seed of random starts and redrawn masks, at least 0.
        on_progress: Called after each batch with the name of the attack, the number of examples done and of all examples.

    Raises:
        SpecError: An argument is out of range, or a surrogate has other classes or another image size.
        ExamplesError: The file is of other attacks, surrogates or images, or another process writes to it.
        TrainingError: The logits or gradients of a source are not finite, or `cw` is used without Foolbox.
        OSError: The file cannot be written. Continue with the same arguments.

    Example:
        >>> surrogates = load_surrogates(["surrogate.safetensors"])
        >>> attack = SourceAttack("pgd16", ATTACKS["pgd16"], ("surrogate",))
        >>> examples = craft("pgd16.examples", surrogates, [attack], images, labels)
    """
    run = _Run(surrogates, attacks, images, labels, rows, class_names, checked_integer("batch_size", batch_size, minimum=1), seed)
    target = Path(path)
    if not target.exists():
        write_atomic(target, header_line(run.header()))
    layout = read_layout(target)
    run.check_plan(target, layout.header["plan"])
    with _locked(target) as file:
        if not _is_complete(file, layout):
            try:
                run.write(file, layout, on_progress)
            except OSError as error:
                raise with_filename(error, target) from error
    return read_examples(target)


class _Run:
    """The arguments of `craft`, checked."""

    def __init__(
        self,
        surrogates: Sequence[Surrogate],
        attacks: Sequence[SourceAttack],
        images: Images,
        labels: Labels,
        rows: Sequence[int] | None,
        class_names: Sequence[str] | None,
        batch_size: int,
        seed: int,
    ) -> None:
        for what, names in (("surrogates", [one.name for one in surrogates]), ("attacks", [one.name for one in attacks])):
            if not names or len(set(names)) != len(names):
                raise SpecError(f"the {what} must be at least one, of different names, got {', '.join(names) or 'none'}")
        check_images(images, in_range=True)
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise SpecError(f"labels must be integers ({len(images)},), one per image, got {labels.dtype} {labels.shape}")
        for surrogate in surrogates:
            if surrogate.spec is not None and tuple(surrogate.spec.input_shape) != images.shape[1:]:
                raise SpecError(f"the surrogate {surrogate.name!r} takes images {surrogate.spec.input_shape}, got {images.shape[1:]}")
        self.images, self.labels = images, labels.astype(np.int64)
        self.rows = np.arange(len(images)) if rows is None else np.asarray(rows, np.int64)
        if self.rows.shape != labels.shape or len(np.unique(self.rows)) != len(labels):
            raise SpecError(f"rows must be {len(images)} different integers, one per image, got {len(np.unique(self.rows))}")
        self.class_names = tuple(surrogates[0].class_names if class_names is None else class_names)
        self.surrogates, self.attacks = {surrogate.name: surrogate for surrogate in surrogates}, tuple(attacks)
        self.batch_size, self.seed = batch_size, checked_integer("seed", seed, minimum=0, maximum=2**63 - 1)
        self.digests = [image_digest(image) for image in images]
        self.sources = [source_of(attack, self.surrogates, self.class_names, self.seed) for attack in self.attacks]

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What determines the examples, as JSON."""
        digest = hashlib.sha256(self.rows.astype("<i8").tobytes() + self.labels.astype("<i8").tobytes() + b"".join(self.digests))
        plan = {
            "surrogates": [surrogate.identity() for surrogate in self.surrogates.values()],
            "attacks": [attack.to_values() for attack in self.attacks],
            "class_names": self.class_names,
            "image_shape": self.images.shape[1:],
            "n": len(self.images),
            "images_sha256": digest.hexdigest(),
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
        values: dict[str, Any] = json.loads(json.dumps(plan))
        return values

    def header(self) -> dict[str, Any]:
        """Return the first line of a new file."""
        versions = {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONS_OF}}
        fingerprints = {name: self._fingerprint(surrogate) for name, surrogate in self.surrogates.items()}
        return {"plan": self.plan, "versions": versions, "fingerprints": fingerprints}

    def check_plan(self, path: Path, plan: Mapping[str, Any]) -> None:
        """Raise an `ExamplesError` if a file has another plan."""
        for key, value in self.plan.items():
            if value != plan.get(key):
                own, other = _described(key, value), _described(key, plan.get(key))
                differing = f"{other}; expected {own}" if own != other else f"{plan.get(key)!r:.300}; expected {value!r:.300}"
                what = {"images_sha256": "images", "n": "images"}.get(key, key.replace("_", " "))
                raise ExamplesError(
                    f"{path} has adversarial examples of other {what} ({differing}): pass the arguments that it was begun with, or another "
                    "file"
                )

    def write(self, file: BinaryIO, layout: Layout, on_progress: OnProgress) -> None:
        """Append all missing batches and the last line."""
        count, total = len(self.images), len(self.images) * len(self.attacks)
        done = _count_valid(file, layout)
        done -= done % count % self.batch_size  # the attacks' batches begin at multiples of n
        file.truncate(layout.start + done * layout.dtype.itemsize)
        file.seek(0, os.SEEK_END)
        while done < total:
            index, start = divmod(done, count)
            batch = slice(start, min(start + self.batch_size, count))
            _append(file, self._records(index, batch, layout.dtype).tobytes())
            done += batch.stop - batch.start
            on_progress(self.attacks[index].name, done, total)
        records = np.memmap(file, layout.dtype, "r", layout.start, layout.shape)
        _append(file, json.dumps({"checks": self._checks(records)}).encode() + b"\n")

    def _records(self, index: int, batch: slice, dtype: np.dtype[Any]) -> NDArray[Any]:
        attack, (source, masks) = self.attacks[index], self.sources[index]
        labels, rows = self.labels[batch], self.rows[batch]
        examples = attack_rows(attack.preset, source, self.images[batch], labels, rows.tolist(), seed=self.seed, masks=masks)
        records = np.zeros(len(labels), dtype)
        is_fooled, is_fooled_8_bit = (predict_classes(source, some) != labels for some in (examples, round_to_8_bits(examples)))
        records["attack"], records["row"], records["label"], records["pixels"] = index, rows, labels, examples
        records["fooled"] = FOOLED * is_fooled + FOOLED_8_BIT * is_fooled_8_bit
        records["image"] = np.frombuffer(b"".join(self.digests[batch]), np.uint8).reshape(-1, 16)
        records["crc"] = [checksum(record) for record in records]
        return records

    def _checks(self, records: NDArray[Any]) -> list[dict[str, str]]:
        chosen = np.unique(np.linspace(0, len(self.images) - 1, CHECKED_IMAGES).astype(np.intp))  # evenly spaced
        images, labels, rows = np.array(self.images[chosen]), self.labels[chosen], self.rows[chosen].tolist()
        checks = []
        for index, (attack, (source, masks)) in enumerate(zip(self.attacks, self.sources, strict=True)):

            def perturb(preset: AttackPreset, is_redrawn: bool, source: nn.Module = source, masks: RedrawnMasks | None = masks) -> Images:
                return attack_rows(preset, source, images, labels, rows, seed=self.seed, masks=masks if is_redrawn else None)

            is_fooled = (records["fooled"][index, chosen] & FOOLED).astype(bool)
            checks += attack_checks(attack, source, len(self.class_names), images, labels, is_fooled, perturb)
        return checks

    def _fingerprint(self, surrogate: Surrogate) -> dict[str, Any]:
        """Return the response to the images of which a network is least certain: there, other networks respond differently."""
        images = self.images[:_SEARCHED_IMAGES]
        module = in_order_of(surrogate, self.class_names)
        device = device_of(module)
        with in_eval_mode(module), torch.inference_mode():
            batches = (np.array(images[start : start + self.batch_size]) for start in range(0, len(images), self.batch_size))
            logits = torch.cat([module(torch.from_numpy(batch).to(device)).cpu() for batch in batches])
        if logits.shape[1:] != (len(self.class_names),):
            raise SpecError(f"the surrogate {surrogate.name!r} must return {len(self.class_names)} logits, got {tuple(logits.shape[1:])}")
        probabilities = logits.softmax(dim=1).numpy()
        chosen = np.sort(np.argsort(probabilities.max(axis=1), kind="stable")[:_FINGERPRINT_IMAGES])
        return fingerprint_to_values(np.array(images[chosen]), probabilities[chosen])


def _described(key: str, value: Any) -> str:
    """Return a value of a plan for an error."""
    if key == "surrogates":
        return ", ".join(f"{one['name']} with the digest {one['digest'][:12]}" for one in value)
    return ", ".join(one["name"] for one in value) if key == "attacks" else f"{value!r:.200}"


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open a file for this process only."""
    with path.open("r+b", buffering=0) as file:  # a buffer that could not be written would fail again when the file is closed
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases it when this process ends
        except BlockingIOError as error:
            raise ExamplesError(f"another process writes examples to {path}. Wait until it ends, stop it, or use another file.") from error
        yield file


def _is_complete(file: BinaryIO, layout: Layout) -> bool:
    file.seek(layout.end)
    return file.read().endswith(b"\n")


def _count_valid(file: BinaryIO, layout: Layout) -> int:
    """Count the records before the first one that is cut off or, after a power cut, not what was written."""
    file.seek(layout.start)
    for index in range(math.prod(layout.shape)):
        content = file.read(layout.dtype.itemsize)
        if len(content) < layout.dtype.itemsize or checksum(np.frombuffer(content, layout.dtype)[0]) != int.from_bytes(
            content[-4:], "little"
        ):
            return index
    return math.prod(layout.shape)


def _append(file: BinaryIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
