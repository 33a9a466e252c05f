"""Whether the parameter `preprocessing` can be read, and whether an ensemble and its members state the same rule.

Triton serves such models all the same, and images of the right size are not affected: these findings do not refuse.
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
    """Find a parameter that is not JSON."""
    text = parameter(config, PREPROCESSING)
    if text is not None:
        try:
            parse_preprocessing(model, text)
        except ConfigError as error:
            _add(inspection, model, str(error))


def check_agreement(inspection: Inspection, ensemble: str, config: schema.ModelConfig, members: Mapping[str, schema.ModelConfig]) -> None:
    """Find members that state different rules, and an ensemble that states another rule than its members."""
    own = parameter(config, PREPROCESSING)
    try:
        agreed = common_preprocessing({name: parameter(member, PREPROCESSING) for name, member in members.items()})
        contradicts = own is not None and (agreed is None or parse_preprocessing(ensemble, own) != parse_preprocessing(ensemble, agreed))
    except ConfigError:
        return  # `check_preprocessing` reports it
    except EnsembleError as error:
        _add(inspection, ensemble, str(error))
        return
    if contradicts:
        text = (
            f"`{PREPROCESSING}` is {str(own)[:200]} here, its members state {(agreed or 'none')[:200]}, so images of another size may be "
            f"resized wrongly: `defensemble ensemble reload {ensemble}` makes it what the members state; where these are wrong, correct "
            "them first"
        )
        _add(inspection, ensemble, text)


def _add(inspection: Inspection, model: str, text: str) -> None:
    inspection.add_finding(model, text, inspection.config_path(model), *parameter_path(PREPROCESSING), is_error=False)
