"""Live edits of ensembles: members, weights and averages change while servers answer; edits are checked, atomic and reversible."""

from __future__ import annotations

from .ensembles import Ensembles
from .errors import EditFailedError, EditRefusedError
from .results import Applied, EnsembleState, MemberState, Replica

__all__ = ["Applied", "EditFailedError", "EditRefusedError", "EnsembleState", "Ensembles", "MemberState", "Replica"]
