"""What is remembered of a training run, and is saved with its weights."""

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
    """How a network was trained, and how good it is.

    Attributes:
        data: the dataset's name.
        data_source: where the images came from, and in which state.
        data_digest: of the images and labels, 16 hexadecimal digits.
        class_names: the name of every class, in the order of the logits, kept in Unicode NFC.
        recipe: the `Recipe`, one key a field.
        epochs: that were done; 0, as all counts, where a network was not trained.
        seed: of the weights, the order of the images and their shifts.
        processes: that took part.
        threads: of the processor, in each; another count may change the last bits of the weights.
        precision: `fp32` or `bf16`, of the arithmetic; weights are float32.
        device: name of the processor or GPU.
        n_train: training images.
        loss: mean cross-entropy of the last epoch on the (augmented) training images, in nats.
        n_held_out: images that were held out of the training.
        held_out_accuracy: fraction of these that the kept weights get right; None where there are none.
        accuracy: fraction of the test images that the kept weights get right.
        n_test: test images.
        seconds: the run took, without loading the data.
        command: how the run was asked for; empty where it was not by a command.
        versions: of Python and of the libraries that took part.
        preprocessing: `Preprocessing.to_values()`, how the image files were brought to the network's size; None where it is not known, or
            where the images came as arrays.

    Raises:
        SpecError: a value of the wrong type, or outside of its range.
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
        # JSON can spell half of a surrogate pair, which no file of labels holds.
        if any("\ud800" <= character <= "\udfff" for name in self.class_names for character in name):
            raise SpecError(f"class_names of a training record must be texts that UTF-8 can hold, got {self.class_names!r:.200}")
        if self.preprocessing is not None:
            try:
                Preprocessing.from_values(self.preprocessing, "a training record")
            except ImagesError as error:
                raise SpecError(str(error)) from error
        object.__setattr__(self, "class_names", tuple(normalised(name) for name in self.class_names))

    @classmethod
    def untrained(cls, class_names: tuple[str, ...], **changes: Any) -> TrainingRecord:
        """Return the record of a network that was not trained, some of its values changed."""
        texts = dict.fromkeys(("data", "data_source", "data_digest", "precision", "device", "command"), "")
        counts = {**dict.fromkeys(("epochs", "seed", "n_train", "n_held_out", "n_test"), 0), "processes": 1, "threads": 1}
        numbers = dict.fromkeys(("loss", "accuracy", "seconds"), 0.0)
        values: dict[str, Any] = {"recipe": {}, "versions": {}, "held_out_accuracy": None, **texts, **counts, **numbers, **changes}
        return cls(class_names=class_names, **values)

    def to_values(self) -> dict[str, Any]:
        """Return the record as values for JSON, one key a field."""
        return {**dataclasses.asdict(self), "class_names": list(self.class_names)}

    @classmethod
    def from_values(cls, values: object) -> TrainingRecord:
        """Read a record from the values of a JSON object; older records have no key `preprocessing`.

        Raises:
            SpecError: a key is missing or unknown, or a value is wrong.
        """
        names = [item.name for item in dataclasses.fields(cls)]
        if not isinstance(values, dict) or {*values, "preprocessing"} != set(names):
            got = ", ".join(map(str, values)) if isinstance(values, dict) else json.dumps(values)[:80]
            raise SpecError(f"a training record must have the keys {', '.join(names)}; got {got}")
        return cls(**values)
