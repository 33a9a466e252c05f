"""Check that the parameter `preprocessing` is valid, and that an ensemble and its members have the same rule.

The findings are remarks: Triton serves such models, and images of the right size are not affected.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ConfigError, EnsembleError
from ..pbtxt import schema
from ..preprocessing import PREPROCESSING, common_preprocessing, parse_preprocessing
from ..reader import parameter
from .finding import parameter_path
from .inspection import Inspection


def check_preprocessing(inspection: Inspection, model: str, config: schema.ModelConfig) -> None:
    """Find a parameter that is not a JSON object."""
    text = parameter(config, PREPROCESSING)
    if text is not None:
        try:
            parse_preprocessing(model, text)
        except ConfigError as error:
            _add(inspection, model, str(error))


def check_agreement(inspection: Inspection, ensemble: str, config: schema.ModelConfig, members: Mapping[str, schema.ModelConfig]) -> None:
    """Find members with different rules, and an ensemble whose rule is not that of its members."""
    own = parameter(config, PREPROCESSING)
    try:
        agreed = common_preprocessing({name: parameter(member, PREPROCESSING) for name, member in members.items()})
        is_contradiction = own is not None and (
            agreed is None or parse_preprocessing(ensemble, own) != parse_preprocessing(ensemble, agreed)
        )
    except ConfigError:
        return  # `check_preprocessing` reports it.
    except EnsembleError as error:
        _add(inspection, ensemble, str(error))
        return
    if is_contradiction:
        text = (
            f"`{PREPROCESSING}` is {str(own)[:200]}, but that of its members is {(agreed or 'none')[:200]}, so images of another size may "
            f"be resized wrongly. Copy the rule of the members with `defensemble ensemble reload {ensemble}`. If their rule is wrong, "
            "correct it first."
        )
        _add(inspection, ensemble, text)


def _add(inspection: Inspection, model: str, text: str) -> None:
    inspection.add_finding(model, text, inspection.config_path(model), *parameter_path(PREPROCESSING), is_error=False)
