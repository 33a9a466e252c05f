"""The record of a training run, which is saved with the weights."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta

from defensemble_images import ImagesError, Preprocessing, normalised

from .errors import SpecError

_Count = Annotated[int, Meta(ge=0)]
_Number = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
_Fraction = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True)
class TrainingRecord:
    """How a network was trained, and its accuracy.

    Counts are 0 for a network that was not trained.

    Attributes:
        data: Name of the dataset.
        data_source: Where the images came from, and their version.
        data_digest: Digest of the images and labels, 16 hexadecimal digits.
        class_names: Class names in the order of the logits, in Unicode NFC.
        recipe: The `Recipe`, one key per field.
        epochs: Number of completed epochs.
        seed: Seed of the weights, the image order and the augmentation.
        processes: Number of processes.
        threads: CPU threads per process. Another number may change the last bits of the weights.
        precision: Precision of the arithmetic, `fp32` or `bf16`. Weights are float32.
        device: Name of the CPU or GPU.
        n_train: Number of training images.
        loss: Mean cross-entropy of the last epoch on the (augmented) training images, in nats.
        n_held_out: Number of held-out images.
        held_out_accuracy: Accuracy of the saved weights on the held-out images, in [0, 1]; None if there are none.
        accuracy: Accuracy of the saved weights on the test images, in [0, 1].
        n_test: Number of test images.
        seconds: Duration of the run in seconds, without loading the data.
        command: Command line of the run; empty if it was started from Python.
        versions: Versions of Python and the libraries.
        preprocessing: `Preprocessing.to_values()`: how image files were resized. None if unknown, or if the images came as arrays.

    Raises:
        SpecError: A value has the wrong type or is out of range.

    Example:
        >>> record = load_checkpoint("digits.safetensors")[2]
        >>> record.accuracy, record.epochs, record.class_names
    """

    data: str
    data_source: str
    data_digest: str
    class_names: Annotated[tuple[str, ...], Meta(min_length=2)]
    recipe: Mapping[str, Any] = field(hash=False)
    epochs: _Count
    seed: _Count
    processes: Annotated[int, Meta(ge=1)]
    threads: Annotated[int, Meta(ge=1)]
    precision: str
    device: str
    n_train: _Count
    loss: _Number
    n_held_out: _Count
    held_out_accuracy: _Fraction | None
    accuracy: _Fraction
    n_test: _Count
    seconds: _Number
    command: str
    versions: Mapping[str, str] = field(hash=False)
    preprocessing: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            try:
                msgspec.convert(value, kind)
            except msgspec.ValidationError as error:
                raise SpecError(f"{name} of a training record: {error}, got {value!r:.200}") from error
        # JSON can encode half of a surrogate pair, but a label file (UTF-8) cannot.
        if any("\ud800" <= character <= "\udfff" for name in self.class_names for character in name):
            raise SpecError(f"class_names of a training record must be valid in UTF-8, got {self.class_names!r:.200}")
        if self.preprocessing is not None:
            try:
                Preprocessing.from_values(self.preprocessing, "a training record")
            except ImagesError as error:
                raise SpecError(str(error)) from error
        object.__setattr__(self, "class_names", tuple(normalised(name) for name in self.class_names))

    @classmethod
    def untrained(cls, class_names: tuple[str, ...], **changes: Any) -> TrainingRecord:
        """Return the record of a network that was not trained, with some values changed."""
        texts = dict.fromkeys(("data", "data_source", "data_digest", "precision", "device", "command"), "")
        counts = {**dict.fromkeys(("epochs", "seed", "n_train", "n_held_out", "n_test"), 0), "processes": 1, "threads": 1}
        numbers = dict.fromkeys(("loss", "accuracy", "seconds"), 0.0)
        values: dict[str, Any] = {"recipe": {}, "versions": {}, "held_out_accuracy": None, **texts, **counts, **numbers, **changes}
        return cls(class_names=class_names, **values)

    def to_values(self) -> dict[str, Any]:
        """Return the record as a JSON object, one key per field."""
        return {**dataclasses.asdict(self), "class_names": list(self.class_names)}

    @classmethod
    def from_values(cls, values: object) -> TrainingRecord:
        """Read a record from a JSON object. The key `preprocessing` is optional, because older records lack it.

        Raises:
            SpecError: A key is missing or unknown, or a value is invalid.
        """
        names = [item.name for item in dataclasses.fields(cls)]
        if not isinstance(values, dict) or {*values, "preprocessing"} != set(names):
            got = ", ".join(map(str, values)) if isinstance(values, dict) else json.dumps(values)[:80]
            raise SpecError(f"a training record must have the keys {', '.join(names)}; got {got}")
        return cls(**values)
