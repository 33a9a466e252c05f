"""Ensembles that are edited while they serve: who votes, with which weight, averaged how; checked, atomic, and undone by one call."""

from __future__ import annotations

from defensemble.ensembles._ensembles import Ensembles
from defensemble.ensembles._errors import EditFailedError, EditRefusedError
from defensemble.ensembles._results import Applied, EnsembleState, MemberState, Replica

__all__ = ["Applied", "EditFailedError", "EditRefusedError", "EnsembleState", "Ensembles", "MemberState", "Replica"]
