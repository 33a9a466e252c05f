"""The paper's figures that belong to a table of a result on the paper's images. Figures that are not known stay missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from .._exceptions import InputError
from ..probes.base import CLEAN
from .cells import MISSING
from .model import Figure

PAPER = "arXiv 1911.08432"
DIFFERENCES = (
    "The paper's networks have width 64 and 350 epochs of training, and its defective ones keep 0.1. With networks that differ, compare "
    "directions and ranks, not values."
)
_CIFAR10, _TINY_IMAGENET = "cifar10", "tiny-imagenet"  # as results name them
_DEFECTIVE = "Defective CNN"
_FIGURE_4 = "the text states only that the standard network holds to sigma 8 and the defective one to about 16"


@dataclass(frozen=True)
class PaperTable:
    """Rows of the paper that belong below a table.

    Attributes:
        where: Its table or figure.
        note: Where the rows come from, what the paper states in words, and which of its networks have no figures here.
        rows: Values by condition, by the name of the network, at least one each. None: the value is not known.

    Example:
        >>> accuracy_in_paper(values, ["clean", "table2-fgsm"]).rows["standard"]["clean"]
        0.9503
    """

    where: str
    note: str
    rows: Mapping[str, Mapping[str, float | None]]

    def figure(self, network: str, probe: str, condition: str, quantity: str) -> Figure:
        """Return a figure of a network.

        Args:
            network: Name of the network, one of `rows`.
            probe: Name of the result that it is compared with.
            condition: Name of the condition.
            quantity: What was measured.
        """
        return Figure("", probe, f"{network} ({self.where})", "paper", condition, quantity, self.rows[network].get(condition))


_Networks = Mapping[str, tuple[float | None, ...]]
# Clean, FGSM 8/255, PGD-7 8/255.
_TABLE_2: _Networks = {
    "standard": (0.9503, 0.5592, 0.1596),
    "SpatialDropout": (0.9544, 0.5211, 0.1298),
    "DropBlock": (0.9538, 0.5627, 0.1469),
    "BPFC": (0.8230, 0.7552, 0.7707),
    "adversarial training": (0.8714, 0.7710, 0.7810),
    "TLA": (None, None, None),
    "Wang & Yu": (None, None, None),
    "Yuan & He": (None, None, None),
    _DEFECTIVE: (None, None, None),
}
# Clean, PGD-20 8/255.
_TABLE_3: _Networks = {
    "SpatialDropout": (0.6182, 0.0843),
    "DropBlock": (0.6137, 0.0915),
    "adversarial training": (0.4477, 0.2773),
    "ALP": (0.4153, 0.3031),
    "TLA": (0.4089, 0.2998),
    _DEFECTIVE: (0.5574, 0.3232),
}
# The table, the architecture of its source, its dataset, a note, the attacks of its columns after the clean one, and its rows.
_TRANSFER: tuple[tuple[str, str, str, str, tuple[str, ...], _Networks], ...] = (
    (
        "Table 2",
        "resnet18",
        _CIFAR10,
        "CIFAR-10, source a standard ResNet-18, all test images, intervals not given; the text states that the defective CNN exceeds every "
        "variant of adversarial training",
        ("table2-fgsm", "table2-pgd"),
        _TABLE_2,
    ),
    (
        "Table 3",
        "resnet50",
        _TINY_IMAGENET,
        "Tiny-ImageNet, source a ResNet-50, all images, intervals not given",
        ("table3-pgd",),
        _TABLE_3,
    ),
)
# S(M) of the boundary attack on 500 images. Two are from comments in the authors' code.
_TABLE_6: Mapping[str, float | None] = {
    "standard": 7.3e-6,
    "SpatialDropout": 7.2e-6,
    "DropBlock": 6.1e-6,
    "label smoothing": 6.8e-6,
    f"{_DEFECTIVE}, keep 0.1": 3.5e-5,
}
# Presets of Tables 5 and 14 to 18, and of MIFGSM, whose numbers are not known.
_UNKNOWN = ("table4-pgd", "fgsm8", "fgsm16", "fgsm32", "pgd16", "pgd2-16", "pgd32", "cw", "cw-resnet18", "mifgsm16", "mifgsm32")


def accuracy_in_paper(values: Mapping[str, Any], conditions: Sequence[str]) -> PaperTable | None:
    """Return the paper's accuracies under the conditions of a table; None if the paper has no such experiment on these images.

    Args:
        values: The result as JSON.
        conditions: The conditions.
    """
    dataset = values["data"].get("name")
    if values["probe"] == "noise" and values["settings"].get("kind", "gaussian") == "gaussian" and dataset == _CIFAR10:
        return _paper_table("Figure 4", _FIGURE_4, {"standard": {}, _DEFECTIVE: {}}, conditions)
    if values["probe"] != "transfer":
        return None
    sources = _standard_sources(values)
    for where, arch, images, note, attacks, networks in _TRANSFER:
        names = [name for name, archs in sources.items() if archs == {arch}]
        columns = {name: column for name in names for column, attack in enumerate(attacks, 1) if _is_of(name, attack)}
        if columns and dataset == images:
            rows = {
                network: {CLEAN: numbers[0], **{name: numbers[column] for name, column in columns.items()}}
                for network, numbers in networks.items()
            }
            return _paper_table(where, note, rows, conditions)
    if dataset == _CIFAR10 and any(_is_of(name, attack) for name in sources for attack in _UNKNOWN):
        return _paper_table("Tables 4, 5 and 14 to 18", "", {"standard": {}, _DEFECTIVE: {}}, conditions)
    return None


def score_in_paper(values: Mapping[str, Any]) -> PaperTable | None:
    """Return the paper's S(M) if a result is of the boundary attack on the paper's images; None for others.

    Args:
        values: The result as JSON.
    """
    if values["probe"] != "boundary" or values["data"].get("name") != _CIFAR10:
        return None
    note = "CIFAR-10, 500 images, 5,000 steps; label smoothing and the defective CNN are from comments in the authors' code"
    return _paper_table("Table 6", note, {network: {"": score} for network, score in _TABLE_6.items()}, [""])


def _paper_table(where: str, note: str, rows: Mapping[str, Mapping[str, float | None]], conditions: Sequence[str]) -> PaperTable:
    """Return the rows that have a figure under the conditions. The note names the others, whose figures are missing."""
    known = {network: row for network, row in rows.items() if any(row.get(condition) is not None for condition in conditions)}
    source = f"{PAPER}, {where}" + (f"; {note}" if note else "")
    if not known:
        return PaperTable(where, f"Figures of the paper are {MISSING}: {source}.", {})
    missing = [network for network in rows if network not in known]
    rest = f" Its figures of {', '.join(missing)} are {MISSING}." if missing else ""
    return PaperTable(where, f"Rows marked paper: {source}.{rest} {DIFFERENCES}", known)


def _standard_sources(values: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the architectures that each condition's examples were crafted on, if the networks have no masks and no dropout."""
    try:
        settings = msgspec.convert(values["settings"], _TransferSettings)
    except msgspec.ValidationError as error:
        raise InputError(f"the result {values['name']} is damaged, settings: {error}. Use an unchanged copy.") from error
    specs = {surrogate.name: surrogate.spec for surrogate in settings.surrogates}
    standard = {name: spec.arch for name, spec in specs.items() if spec is not None and spec.keep == 1 and spec.drop is None}
    return {
        attack.name: {standard[name] for name in attack.surrogates}
        for attack in settings.attacks
        if standard.keys() >= set(attack.surrogates)
    }


class _Spec(msgspec.Struct):
    arch: str = ""
    keep: float | None = None
    drop: Any = None


class _Surrogate(msgspec.Struct):
    name: str
    spec: _Spec | None = None


class _Attack(msgspec.Struct):
    name: str
    surrogates: list[str]


class _TransferSettings(msgspec.Struct):
    """What is needed of the settings of transferred examples."""

    surrogates: list[_Surrogate] = []
    attacks: list[_Attack] = []


def _is_of(name: str, attack: str) -> bool:
    """Return whether a condition is an attack of the paper: at its own epsilon, and from one source."""
    return name == attack or (name.startswith(f"{attack} from ") and not name.startswith(f"{attack} from averaged "))
