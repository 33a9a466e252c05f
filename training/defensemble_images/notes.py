"""Describe for the user how images were read, one line per note."""

from __future__ import annotations

from .folders import SkippedFiles


def reading_notes(
    skipped: SkippedFiles, *, damaged: int = 0, first_damage: str | None = None, animations: int = 0, first_animation: str | None = None
) -> tuple[str, ...]:
    """Return notes about skipped files, damaged images and animations; empty if there is nothing to note.

    Args:
        skipped: Entries of class folders that were skipped.
        damaged: Number of damaged images that were left out.
        first_damage: The first of them.
        animations: Number of images of which only the first frame was read.
        first_animation: The first of them.
    """
    notes = [f"skipped {skipped}"] if str(skipped) else []
    if damaged:
        notes.append(f"left out {damaged} damaged {'image' if damaged == 1 else 'images'}, such as {first_damage}")
    if animations:
        count = "1 image is an animation" if animations == 1 else f"{animations} images are animations"
        notes.append(f"{count}, such as {first_animation}: only the first frame was read")
    return tuple(notes)
