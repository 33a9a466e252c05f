"""Resize images to a network's input size, and record how."""

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
_MAX_ASPECT_RATIO = 16  # longer images are cropped before they are scaled


@dataclass(frozen=True)
class Preprocessing:
    """How images are resized to a network's input size.

    Both rules resample with Pillow's bicubic filter, which is antialiased. An image that already has the size is not changed.

    Attributes:
        resize: `crop` scales the image until it just covers the size, then crops the centre; `squash` scales height and width separately.

    Raises:
        ImagesError: `resize` is not a known rule.

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
        """Read the result of `to_values`.

        Args:
            values: The JSON object.
            where: What holds it, for errors.

        Raises:
            ImagesError: The value is not a known rule; it may be one of a later version.
        """
        if isinstance(values, Mapping) and values.get("resize") in RESIZES:
            rule = cls(values["resize"])
            if dict(values) == rule.to_values():
                return rule
        raise ImagesError(
            f"the `preprocessing` of {where} is {str(values)[:200]}; expected {cls().to_json()} or the same with another `resize` "
            f"({', '.join(RESIZES)}). Export the model again, or update defensemble."
        )

    @classmethod
    def from_json(cls, text: str, where: str) -> Preprocessing:
        """Read the result of `to_json`.

        Args:
            text: The JSON text.
            where: What holds it, for errors.

        Raises:
            ImagesError: See `from_values`.
        """
        try:
            values: object = json.loads(text)
        except (ValueError, RecursionError):
            values = text
        return cls.from_values(values, where)

    def fit(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """Resize an image.

        Args:
            image: An image of mode L, RGB, RGBa or F.
            width: Width of the result in pixels.
            height: Height of the result in pixels.
        """
        from PIL import Image

        if image.size == (width, height):
            return image
        if self.resize == "squash":
            return image.resize((width, height), Image.Resampling.BICUBIC)
        scale = max(width / image.width, height / image.height)
        scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        if scaled[0] * scaled[1] <= _MAX_ASPECT_RATIO * width * height:
            resized = image if scaled == image.size else image.resize(scaled, Image.Resampling.BICUBIC)
            return resized.crop((left, top, left + width, top + height))
        # Scaling a thin image before cropping would make it many times larger than the crop.
        factor_x, factor_y = image.width / scaled[0], image.height / scaled[1]
        right, bottom = min((left + width) * factor_x, image.width), min((top + height) * factor_y, image.height)
        return image.resize((width, height), Image.Resampling.BICUBIC, box=(left * factor_x, top * factor_y, right, bottom))
