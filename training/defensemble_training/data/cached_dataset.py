"""A dataset by its digest, from the cache of decoded images: the very images that a network was trained on, wherever its files are now."""

from __future__ import annotations

from collections.abc import Sequence

from .cache import cache_folder, read_entry
from .dataset import Dataset, Part
from .registry import DATASET_INFOS


def find_cached_dataset(name: str, digest: str, class_names: Sequence[str]) -> Dataset | None:
    """Return the decoded dataset of a name, as `load_dataset` takes it; None where the cache does not hold it.

    `digest` is `Dataset.digest`, 16 hexadecimal digits over pixels and labels; it does not cover the class names.
    """
    if not digest or name not in DATASET_INFOS:
        return None
    for path in sorted(cache_folder().glob("[!.]*/meta.json")):
        try:
            may_be = f'"{digest}"' in path.read_text()
        except (OSError, UnicodeDecodeError):  # deleted meanwhile, or damaged: decoded again when it is asked for by its files
            continue
        entry = read_entry(path.parent.name) if may_be else None
        if entry is not None and entry.meta.digest == digest and entry.meta.class_names == tuple(class_names):
            meta = entry.meta
            parts = Part(entry.train_pixels, entry.train_labels), Part(entry.test_pixels, entry.test_labels)
            source = f"{meta.source}, from the cache of decoded images"
            return Dataset(name, meta.class_names, *parts, meta.mean, meta.std, DATASET_INFOS[name].flip, source, digest)
    return None
