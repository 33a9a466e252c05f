"""Find a decoded dataset in the cache by its digest: exactly the images that a network was trained on, without their files."""

from __future__ import annotations

from collections.abc import Sequence

from .cache import cache_folder, read_entry
from .dataset import Dataset, Part
from .registry import DATASET_INFOS


def find_cached_dataset(name: str, digest: str, class_names: Sequence[str]) -> Dataset | None:
    """Find a decoded dataset in the cache. Return None if it is not there.

    Args:
        name: The dataset's name, as for `load_dataset`.
        digest: `Dataset.digest`, 16 hexadecimal digits over pixels and labels.
        class_names: The class names, which the digest does not cover.
    """
    if not digest or name not in DATASET_INFOS:
        return None
    for path in sorted(cache_folder().glob("[!.]*/meta.json")):
        try:
            is_candidate = f'"{digest}"' in path.read_text()
        except (OSError, UnicodeDecodeError):  # deleted meanwhile, or damaged: `load_dataset` decodes it again
            continue
        entry = read_entry(path.parent.name) if is_candidate else None
        if entry is not None and entry.meta.digest == digest and entry.meta.class_names == tuple(class_names):
            meta = entry.meta
            parts = Part(entry.train_pixels, entry.train_labels), Part(entry.test_pixels, entry.test_labels)
            source = f"{meta.source}, from the cache of decoded images"
            return Dataset(name, meta.class_names, *parts, meta.mean, meta.std, DATASET_INFOS[name].flip, source, digest)
    return None
