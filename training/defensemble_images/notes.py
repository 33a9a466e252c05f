"""What a user should know of how images were read, one line each."""

from __future__ import annotations

from .folders import SkippedFiles


def reading_notes(
    skipped: SkippedFiles, *, damaged: int = 0, first_damage: str | None = None, animations: int = 0, first_animation: str | None = None
) -> tuple[str, ...]:
    """Return lines on what was skipped in class folders, on damaged images and on animations; empty where there is nothing to note.

    `damaged` images were left out; of `animations`, which hold more frames, only the first was read.
    """
    notes = [f"skipped {skipped}"] if str(skipped) else []
    if damaged:
        notes.append(f"left out {damaged} damaged {'image' if damaged == 1 else 'images'}, such as {first_damage}")
    if animations:
        what = "1 image is an animation" if animations == 1 else f"{animations} images are animations"
        notes.append(f"{what}, such as {first_animation}: only the first frame was read")
    return tuple(notes)
