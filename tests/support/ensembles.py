"""A hypothesis strategy for ensembles."""

from __future__ import annotations

import math

from hypothesis import assume, strategies as st

from defensemble_export import EnsembleError
from defensemble_repository.ensemble import Ensemble, Member

# Some are not text to a YAML 1.1 reader.
_NAMES = st.one_of(
    st.sampled_from(["on", "null", "1e3", "0.5", "0x10", "1", "keep0.1", "a", "b"]),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}", fullmatch=True),
)
_WEIGHTS = st.one_of(
    st.integers(1, 5).map(float), st.floats(min_value=0, exclude_min=True, allow_infinity=False), st.floats(0.01, 10).filter(math.isfinite)
)
_VERSIONS = st.one_of(st.integers(1, 3), st.integers(1, 2**63 - 1))


@st.composite
def ensembles(draw: st.DrawFn, name: str | None = None) -> Ensemble:
    """Draw an ensemble of 1 to 5 members, named `name` if given."""
    members = draw(st.lists(st.tuples(_NAMES, _VERSIONS, _WEIGHTS), min_size=1, max_size=5, unique_by=lambda member: member[:2]))
    average = draw(st.sampled_from(["probabilities", "logits"]))
    try:
        return Ensemble(draw(_NAMES) if name is None else name, tuple(Member(*member) for member in members), average)
    except EnsembleError:  # a share that is too small, a reserved name, or the ensemble's own name
        assume(False)
        raise
