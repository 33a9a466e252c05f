"""Ensembles that are edited while they serve: who votes, with which weight, averaged how; checked, atomic, and undone by one call."""

from __future__ import annotations

from .ensembles import Ensembles
from .errors import EditFailedError, EditRefusedError
from .results import Applied, EnsembleState, MemberState, Replica

__all__ = ["Applied", "EditFailedError", "EditRefusedError", "EnsembleState", "Ensembles", "MemberState", "Replica"]
