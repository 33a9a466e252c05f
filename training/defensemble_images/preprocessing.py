"""How an image is brought to the size that a network takes, and how that is recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .errors import ImagesError

if TYPE_CHECKING:
    from PIL import Image

VERSION = 1
RESIZES = ("crop", "squash")
_LONGEST = 16  # times the short side; longer images are cut before they are scaled


@dataclass(frozen=True)
class Preprocessing:
    """The rule by which images of another size are brought to the size of a network.

    Both rules resample with Pillow's bicubic filter, which is antialiased. An image that has the size already is not touched.

    Attributes:
        resize: `crop` scales the image until it just covers the size (its short side, for a square) and keeps the centre; `squash` scales
            height and width separately.

    Raises:
        ImagesError: there is no such rule.

    Example:
        >>> Preprocessing().to_json()
        '{"version": 1, "resize": "crop", "filter": "bicubic"}'
    """

    resize: str = "crop"

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise ImagesError(f"resize must be one of {', '.join(RESIZES)}, got {self.resize!r}")

    def to_values(self) -> dict[str, Any]:
        """Return the rule as a JSON object."""
        return {"version": VERSION, **asdict(self), "filter": "bicubic"}

    def to_json(self) -> str:
        """Return the rule as the text of the `preprocessing` parameter in a model's configuration."""
        return json.dumps(self.to_values())

    @classmethod
    def from_values(cls, values: object, where: str) -> Preprocessing:
        """Read what `to_values` returned; `where` is what carries it, for errors.

        Raises:
            ImagesError: it is something else, such as a rule of a later version.
        """
        if isinstance(values, Mapping) and values.get("resize") in RESIZES:
            rule = cls(values["resize"])
            if dict(values) == rule.to_values():
                return rule
        raise ImagesError(
            f"the `preprocessing` of {where} is {str(values)[:200]}, expected {cls().to_json()} or the same with another `resize` "
            f"({', '.join(RESIZES)}): export the model again, or update defensemble"
        )

    @classmethod
    def from_json(cls, text: str, where: str) -> Preprocessing:
        """Read what `to_json` returned; otherwise as `from_values`."""
        try:
            values: object = json.loads(text)
        except (ValueError, RecursionError):
            values = text
        return cls.from_values(values, where)

    def fit(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """Bring an image of mode L, RGB, RGBa or F to a size in pixels."""
        from PIL import Image

        if image.size == (width, height):
            return image
        if self.resize == "squash":
            return image.resize((width, height), Image.Resampling.BICUBIC)
        scale = max(width / image.width, height / image.height)
        scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        if scaled[0] * scaled[1] <= _LONGEST * width * height:
            whole = image if scaled == image.size else image.resize(scaled, Image.Resampling.BICUBIC)
            return whole.crop((left, top, left + width, top + height))
        # Scaled as a whole, a thin image would become many times larger than what is kept of it.
        across, down = image.width / scaled[0], image.height / scaled[1]
        right, bottom = min((left + width) * across, image.width), min((top + height) * down, image.height)
        return image.resize((width, height), Image.Resampling.BICUBIC, box=(left * across, top * down, right, bottom))
