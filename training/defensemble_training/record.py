"""What is remembered of a training run, and is saved with its weights."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ._errors import SpecError


@dataclass(frozen=True)
class TrainingRecord:
    """How a network was trained, and how good it is.

    Attributes:
        data: the dataset's name.
        image_size: height and width of its images.
        class_names: the name of every class, in the order of the logits.
        epochs: passes over the training images; 0, as all counts, where a network was not trained.
        batch_size: images a step.
        learning_rate: the highest one of the schedule.
        seed: of the weights, the order of the images and their shifts.
        threads: of the processor; another count may change the last bits of the weights.
        n_train: training images.
        loss: mean cross-entropy of the last epoch on the (shifted) training images, in nats.
        accuracy: fraction of the test images that the last epoch's weights get right.
        n_test: test images.
        seconds: the run took, without loading the data.
        versions: of Python and of the libraries that took part.

    Raises:
        SpecError: a value of the wrong type, or outside of its range.
    """

    data: str
    image_size: int
    class_names: tuple[str, ...]
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    threads: int
    n_train: int
    loss: float
    accuracy: float
    n_test: int
    seconds: float
    versions: Mapping[str, str] = field(hash=False)

    def __post_init__(self) -> None:
        texts = isinstance(self.class_names, tuple) and all(_is_text(name) for name in self.class_names)
        _check("data", self.data, "a text", isinstance(self.data, str))
        _check("class_names", self.class_names, "two or more texts that UTF-8 can hold", texts and len(self.class_names) >= 2)
        for name, minimum in {"image_size": 1, "epochs": 0, "batch_size": 1, "seed": 0, "threads": 1, "n_train": 0, "n_test": 0}.items():
            value = getattr(self, name)
            _check(name, value, f"an integer of at least {minimum}", type(value) is int and value >= minimum)
        for name in ("learning_rate", "loss", "accuracy", "seconds"):
            value = getattr(self, name)
            _check(name, value, "a number of at least 0", type(value) in (int, float) and 0 <= value < float("inf"))
        _check("accuracy", self.accuracy, "a fraction in [0, 1]", self.accuracy <= 1)
        named = isinstance(self.versions, Mapping) and all(isinstance(text, str) for item in self.versions.items() for text in item)
        _check("versions", self.versions, "texts by name", named)

    def to_values(self) -> dict[str, Any]:
        """Return the record as values for JSON, one key a field."""
        return {**dataclasses.asdict(self), "versions": dict(self.versions)}

    @classmethod
    def from_values(cls, values: object) -> "TrainingRecord":
        """Read a record from the values of a JSON object.

        Raises:
            SpecError: a key is missing or unknown, or a value is wrong.
        """
        names = [item.name for item in dataclasses.fields(cls)]
        if not isinstance(values, dict) or set(values) != set(names):
            got = ", ".join(map(str, values)) if isinstance(values, dict) else json.dumps(values)[:80]
            raise SpecError(f"a training record must have the keys {', '.join(names)}; got {got}")
        names_of_classes = values["class_names"]
        return cls(**{**values, "class_names": tuple(names_of_classes) if isinstance(names_of_classes, list) else names_of_classes})


def _is_text(value: object) -> bool:
    """Whether a value is a text of whole characters: JSON can spell half of a surrogate pair, which no file of labels holds."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _check(name: str, value: object, expected: str, holds: bool) -> None:
    if not holds:
        raise SpecError(f"{name} of a training record must be {expected}, got {value!r}")
