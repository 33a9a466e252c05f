from __future__ import annotations

from typing import Any

DEFAULT_COUNT, DEFAULT_SEED = 512, 0


class Calibration:
    def to_values(self) -> dict[str, Any]:
        return {}


def calibration_images(images: Any, *, source: str, count: int, seed: int) -> tuple[Any, Calibration]:
    raise NotImplementedError
