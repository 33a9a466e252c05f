"""Sets of neurons as unions of intersections of masks: what a program can state about its supports without listing neurons."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
Shape = tuple[int, int, int]  # channels, height, width
# More terms are replaced by the full set: the union of so many masks is almost full, and expressions stay short.
MAX_TERMS = 8


@dataclass(frozen=True)
class MaskExpression:
    """A set of neurons: the union of `terms`, each the intersection of the masks that it names. A term without masks is all neurons.

    Example:
        >>> str(MaskExpression.of("a") & MaskExpression.of("b") | MaskExpression.of("c"))
        'a&b|c'
    """

    terms: frozenset[frozenset[str]]

    @classmethod
    def of(cls, mask: str) -> MaskExpression:
        """Return the set of one mask."""
        return cls(frozenset((frozenset((mask,)),)))

    @property
    def is_full(self) -> bool:
        """Whether the set is stated to be all neurons."""
        return frozenset() in self.terms

    def __or__(self, other: MaskExpression) -> MaskExpression:
        """Return the union, or a larger set if it has too many terms."""
        return _simplified(self.terms | other.terms)

    def __and__(self, other: MaskExpression) -> MaskExpression:
        """Return the intersection, or a larger set if it has too many terms."""
        product = _simplified(one | two for one in self.terms for two in other.terms)
        return min(self, other, key=lambda each: each.is_full) if product.is_full else product

    def implies(self, mask: str) -> bool:
        """Return whether the set is stated to be a part of `mask`."""
        return all(mask in term for term in self.terms)

    def only(self, masks: Collection[str]) -> MaskExpression:
        """Return the smallest set that contains this one and is expressed by `masks` only."""
        return _simplified(term.intersection(masks) for term in self.terms)

    def masks(self) -> set[str]:
        """Return the names of all masks in the expression."""
        return {mask for term in self.terms for mask in term}

    def evaluate(self, masks: Mapping[str, npt.NDArray[Any]], shape: Shape) -> BoolArray:
        """Return the set as BOOL (C,H,W).

        Args:
            masks: The masks, each (C,H,W), (C,1,1) or (1,H,W), with or without a leading axis of 1.
            shape: (C,H,W).
        """
        union = np.zeros(shape, bool)
        for term in self.terms:
            both = np.ones(shape, bool)
            for mask in term:
                both &= masks[mask].reshape(masks[mask].shape[-3:])
            union |= both
        return union

    def text(self, names: Mapping[str, object]) -> str:
        """Return the expression as text, with masks written as `names` gives them."""
        if self.is_full:
            return "full"
        return "|".join(sorted("&".join(sorted(str(names[mask]) for mask in term)) for term in self.terms))

    def __str__(self) -> str:
        return self.text({mask: mask for mask in self.masks()})


FULL = MaskExpression(frozenset((frozenset(),)))
NOTHING = MaskExpression(frozenset())


def _simplified(terms: Iterable[frozenset[str]]) -> MaskExpression:
    """Return the union of `terms`, without those that others contain; all neurons if too many remain."""
    unique = set(terms)
    kept = frozenset(term for term in unique if not any(other < term for other in unique))
    return MaskExpression(kept) if len(kept) <= MAX_TERMS else FULL
