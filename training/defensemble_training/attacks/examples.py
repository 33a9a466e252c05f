"""A file of adversarial examples, which are crafted once and sent to any number of targets. This module does not import torch.

The file is one JSON object in a line (padded with spaces to a multiple of 64 bytes), then a record of fixed size for each example, by
attack and then by image, then one more JSON object in a line. The records are appended batch by batch, so that a run that was killed
continues where it ended; a file without the last line is not complete. Each record has a checksum and a digest of the clean image.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ExamplesError, SpecError
from ..validation import check_choice, checked_integer
from .presets import AttackPreset

SCHEMA = "defensemble.examples/1"
FOOLED, FOOLED_8_BIT = 1, 2
_ALIGNMENT = 64
_MAX_LINE = 1 << 28
_MAX_IMAGES = 1 << 40
_AVERAGES = ("none", "probabilities", "logits")


@dataclass(frozen=True)
class SourceAttack:
    """An attack on one source: one surrogate, or the average of several.

    Attributes:
        name: Unique name, of which a result has one column.
        preset: The attack.
        surrogates: Names of the surrogates.
        average: What several surrogates average: `probabilities` or `logits`; `none` for one surrogate.
        draws: Draws of new masks whose gradients are averaged at each step (see `RedrawnMasks`); 0 keeps the masks.

    Raises:
        SpecError: A value is out of range, or the surrogates do not match the average.

    Example:
        >>> SourceAttack("pgd16", ATTACKS["pgd16"], ("first", "second"), average="probabilities", draws=5)
    """

    name: str
    preset: AttackPreset
    surrogates: tuple[str, ...]
    average: Literal["none", "probabilities", "logits"] = "none"
    draws: int = 0

    def __post_init__(self) -> None:
        check_choice("the average of a source", self.average, _AVERAGES)
        checked_integer("the draws of a source", self.draws, minimum=0)
        if not self.surrogates:
            raise SpecError("a source must have at least one surrogate, got none")
        if len(self.surrogates) > 1 and self.average == "none":
            raise SpecError(f"a source of {len(self.surrogates)} surrogates must average probabilities or logits, got {self.average!r}")
        if self.draws and self.preset.algorithm == "cw":
            raise SpecError("masks cannot be redrawn in cw, whose steps are Foolbox's; use fgsm, pgd or mifgsm, or draws=0")

    def to_values(self) -> dict[str, Any]:
        """Return the attack as JSON, without the text in which a preset names its source."""
        preset = {key: value for key, value in dataclasses.asdict(self.preset).items() if key != "paper"}
        return {**dataclasses.asdict(self), "preset": preset, "surrogates": list(self.surrogates)}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> SourceAttack:
        """Read an attack from JSON."""
        return cls(**{**values, "preset": AttackPreset(**values["preset"]), "surrogates": tuple(values["surrogates"])})


@dataclass(frozen=True)
class SurrogateRecord:
    """What a file records of a surrogate, to recognise it among targets.

    Attributes:
        name: Its name in the file.
        digest: SHA-256 of its weights and masks.
        mask_digest: `mask_digest` of its masks; None if it has none.
        spec: Its `ModelSpec`, one key per field; None if unknown.
        images: float32 (k, C, H, W): the clean images of which it is least certain.
        probabilities: float32 (k, K): its response to them, with the classes of the file.

    Example:
        >>> read_examples("pgd16.examples").surrogates[0].mask_digest
    """

    name: str
    digest: str
    mask_digest: str | None
    spec: Mapping[str, Any] | None
    images: NDArray[np.float32]
    probabilities: NDArray[np.float32]


class Examples:
    """A complete file of adversarial examples, mapped into memory.

    Attributes:
        path: The file.
        plan: What determines the examples: attacks, surrogates, images, seed, as JSON. Files with the same plan have the same examples.
        attacks: The attacks, in order.
        surrogates: The surrogates.
        class_names: Names of the classes, in the order of the labels.
        checks: Sanity checks of the attacks, each with `name`, `status` (`PASS`, `WARN` or `FAIL`) and `text`.
        versions: Versions of the libraries that crafted the examples.

    Example:
        >>> examples = read_examples("pgd16.examples")
        >>> examples.example("pgd16", row=17, image=image, label=3)
    """

    def __init__(self, path: Path, header: Mapping[str, Any], records: NDArray[Any], checks: Sequence[Mapping[str, str]]) -> None:
        self.path, self.plan = path, header["plan"]
        self.attacks = tuple(SourceAttack.from_values(values) for values in self.plan["attacks"])
        self.surrogates = tuple(_surrogate_record(values, header["fingerprints"][values["name"]]) for values in self.plan["surrogates"])
        self.class_names: tuple[str, ...] = tuple(self.plan["class_names"])
        self.checks: tuple[Mapping[str, str], ...] = tuple(checks)
        self.versions: Mapping[str, str] = header["versions"]
        self._records = records
        self._index = {attack.name: index for index, attack in enumerate(self.attacks)}
        self._position = {row: position for position, row in enumerate(records["row"][0].tolist())}

    @property
    def rows(self) -> NDArray[np.int64]:
        """The positions of the images in their dataset, (n,)."""
        return np.array(self._records["row"][0], np.int64)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The classes of the images, (n,)."""
        return np.array(self._records["label"][0], np.int64)

    def example(self, attack: str, row: int, image: NDArray[np.float32], label: int) -> NDArray[np.float32]:
        """Return the example of an image, float32 (C, H, W) in [0, 1].

        Args:
            attack: Name of the attack.
            row: Position of the image in its dataset.
            image: The clean image, to check that the example belongs to it.
            label: Its class.

        Raises:
            ExamplesError: The file does not have the example, is damaged, or was crafted from another image.
        """
        record = self._records[self._attack_index(attack), self._positions([row])[0]]
        if record["crc"] != checksum(record):
            raise ExamplesError(f"{self.path} is damaged at the example of row {row}. Use an unchanged copy, or craft it again.")
        if record["image"].tobytes() != image_digest(image) or record["label"] != label:
            got = f"label {label}" if record["label"] != label else "other pixels"
            raise ExamplesError(
                f"{self.path} has an example of another image in row {row} ({got}; crafted with label {record['label']}): use the images, "
                "the order and the preprocessing that it was crafted with, or craft a new file"
            )
        return np.array(record["pixels"], np.float32)

    def is_source_fooled(self, attack: str, rows: Sequence[int], *, eight_bit: bool = False) -> NDArray[np.bool_]:
        """Return for each row whether the source misclassifies its example.

        Args:
            attack: Name of the attack.
            rows: Positions of the images in their dataset.
            eight_bit: Whether the example is rounded to 256 grey levels.

        Raises:
            ExamplesError: The file does not have one of the rows.
        """
        flags = self._records["fooled"][self._attack_index(attack), self._positions(rows)]
        return np.asarray(flags & (FOOLED_8_BIT if eight_bit else FOOLED), np.bool_)

    def _attack_index(self, attack: str) -> int:
        if attack not in self._index:
            raise ExamplesError(f"{self.path} has the attacks {', '.join(self._index)}; got {attack!r}")
        return self._index[attack]

    def _positions(self, rows: Sequence[int]) -> list[int]:
        missing = [row for row in rows if row not in self._position]
        if missing:
            raise ExamplesError(
                f"{self.path} has no examples of {len(missing)} of the images, such as row {missing[0]}; it has {len(self._position)} "
                "rows. Use images that it was crafted from (the same dataset, limit and seed), or craft a new file."
            )
        return [self._position[row] for row in rows]


def read_examples(path: str | os.PathLike[str]) -> Examples:
    """Open a complete file of adversarial examples.

    Raises:
        ExamplesError: The file does not exist, is incomplete, damaged or of another kind.
        OSError: The file cannot be read.

    Example:
        >>> examples = read_examples("pgd16.examples")
        >>> examples.is_source_fooled("pgd16", examples.rows).mean()
    """
    path = Path(path)
    if not path.exists():
        raise ExamplesError(
            f"the examples {path} do not exist. Craft them from surrogates: defensemble probe transfer --surrogate FILE ..."
        )
    layout = read_layout(path)
    with path.open("rb") as file:
        file.seek(layout.end)
        last = file.readline(_MAX_LINE)
    if not last.endswith(b"\n"):
        raise ExamplesError(
            f"{path} is incomplete: it has {(path.stat().st_size - layout.start) // layout.dtype.itemsize} of {math.prod(layout.shape)} "
            "examples. Continue with the same surrogates, presets and images."
        )
    records = np.memmap(path, layout.dtype, "r", layout.start, layout.shape)
    try:
        return Examples(path, layout.header, records, json.loads(last)["checks"])
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error) as error:
        raise ExamplesError(f"{path} is damaged ({error!r:.200}). Use an unchanged copy, or craft the examples again.") from error


@dataclass(frozen=True)
class Layout:
    """Where the records of a file are.

    Attributes:
        header: The first line.
        start: Offset of the first record.
        dtype: Type of a record.
        shape: (attacks, images).
    """

    header: Mapping[str, Any]
    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, int]

    @property
    def end(self) -> int:
        """Offset of the last line."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def read_layout(path: Path) -> Layout:
    """Read the first line of a file of examples.

    Raises:
        ExamplesError: The file has another format.
        OSError: The file cannot be read.
    """
    if path.exists() and not path.is_file() and not path.is_dir():  # to open a FIFO would wait for a writer
        raise ExamplesError(f"{path} is a FIFO, a socket or a device; expected a file of adversarial examples")
    with path.open("rb") as file:
        line = file.readline(_MAX_LINE)
    try:
        header = json.loads(line)
        if header["schema"] != SCHEMA:
            raise ValueError(f"its schema is {header['schema']!r:.80}")
        plan = header["plan"]
        if type(plan["n"]) is not int or not 0 <= plan["n"] <= _MAX_IMAGES:
            raise ValueError(f"it states {plan['n']!r:.80} images")
        names = [name for attack in plan["attacks"] for name in (attack["name"], attack["preset"]["name"])]
        if type(plan["seed"]) is not int or not all(isinstance(name, str) for name in names):
            raise ValueError("its plan has a seed that is no integer, or names of attacks that are no texts")
        return Layout(header, len(line), record_dtype(plan["image_shape"]), (len(plan["attacks"]), plan["n"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExamplesError(
            f"{path} is not a file of adversarial examples of schema {SCHEMA} ({error!r:.200}): pass another file"
        ) from error


def header_line(header: Mapping[str, Any]) -> bytes:
    """Return the first line of a file."""
    text = json.dumps({"schema": SCHEMA, **header}).encode()
    return text + b" " * (-(len(text) + 1) % _ALIGNMENT) + b"\n"


def record_dtype(image_shape: Sequence[int]) -> np.dtype[Any]:
    """Return the type of one record for images (C, H, W)."""
    return np.dtype(
        [
            ("attack", "<u4"),
            ("fooled", "<u4"),
            ("row", "<i8"),
            ("label", "<i8"),
            ("image", "u1", 16),
            ("pixels", "<f4", tuple(image_shape)),
            ("crc", "<u4"),
        ]
    )


def image_digest(image: NDArray[np.float32]) -> bytes:
    """Return 16 bytes that identify an image."""
    return hashlib.sha256(np.ascontiguousarray(image, "<f4").data).digest()[:16]


def checksum(record: NDArray[Any] | np.void) -> int:
    """Return the checksum of one record, without its own field `crc`."""
    return zlib.crc32(record.tobytes()[:-4])


def fingerprint_to_values(images: NDArray[np.float32], probabilities: NDArray[np.float32]) -> dict[str, Any]:
    """Return clean images and a surrogate's response to them as JSON."""
    pixels = zlib.compress(np.ascontiguousarray(images, "<f4").tobytes())
    return {"images": base64.b64encode(pixels).decode(), "shape": list(images.shape), "probabilities": probabilities.tolist()}


def _surrogate_record(values: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> SurrogateRecord:
    pixels = zlib.decompress(base64.b64decode(fingerprint["images"]))
    images = np.frombuffer(pixels, "<f4").reshape(fingerprint["shape"])
    return SurrogateRecord(**values, images=images, probabilities=np.array(fingerprint["probabilities"], np.float32))
