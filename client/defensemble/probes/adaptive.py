"""The adaptive probe: the strongest transfer attack of an attacker who knows the defence, but neither its masks nor its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError
from ..results.intervals import Rate, rate
from .base import CLEAN, NOISE
from .outcome import Check
from .transfer import FOOLS_SOURCE, Transfer

if TYPE_CHECKING:
    from defensemble_training import AttackPreset, SourceAttack


@dataclass(frozen=True)
class Adaptive(Transfer):
    """Accuracy against an attacker who trains defective networks of the same kind, and attacks their average over fresh masks.

    The surrogates have the architecture, keep and data of the target's members, but masks and weights of their own. The gradient goes
    through the average of their probabilities, as the target is served, and in a second condition through that of their logits. Each
    gradient is averaged over fresh masks.

    Attributes:
        draws: Draws of masks per gradient, at least 1.

    Raises:
        InputError: A value is out of range.

    Example:
        >>> measure(Adaptive(Path("adaptive.examples"), ("surrogate-b.safetensors", "surrogate-c.safetensors")), targets, data)
    """

    presets: tuple[str | AttackPreset, ...] = ("paper-pgd16",)
    draws: int = 5

    name: ClassVar[str] = "adaptive"
    paper: ClassVar[str | None] = "arXiv:1911.08432, tables 10 and 11, with the expectation over masks of arXiv:1707.07397"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise InputError(f"draws must be at least 1, got {self.draws}")

    @property
    def title(self) -> str:
        """The attack."""
        return "Adaptive attack"

    @property
    def threat_model(self) -> str:
        """What the attacker knows."""
        names = self._surrogate_names()
        networks = f"{'a defective network' if len(names) == 1 else 'defective networks'} of its own ({', '.join(names)})"
        return (
            "The attacker knows the defence (architecture, keep, pattern of masks, training data), but neither the target's weights nor "
            f"its masks. It has {networks}. {self._sources_text()}Each gradient "
            f"is averaged over {self.attacks[0].draws} draws of fresh masks or, in the last condition, taken with the masks as trained. "
            "One query an image."
        )

    @cached_property
    def attacks(self) -> tuple[SourceAttack, ...]:
        """The attacks, one for each condition."""
        attacks = super().attacks
        if not any(attack.draws for attack in attacks):
            raise InputError(f"{self.examples} has examples without fresh masks, as the probe transfer crafts them: pass another file")
        return attacks

    def _source_attacks(self, preset: AttackPreset, surrogates: tuple[str, ...]) -> list[SourceAttack]:
        from defensemble_training import SourceAttack

        if len(surrogates) == 1:  # the average of probabilities is then that of logits
            return [
                SourceAttack(preset.name, preset, surrogates, draws=self.draws),
                SourceAttack(f"{preset.name} {_TRAINED}", preset, surrogates),
            ]
        averages = ("probabilities", "logits") if self.average == "none" else (self.average,)
        attacks = [
            SourceAttack(f"{preset.name} through {average}", preset, surrogates, average, self.draws)  # type: ignore[arg-type]
            for average in averages
        ]
        return [*attacks, SourceAttack(f"{preset.name} {_TRAINED}", preset, surrogates, averages[0])]  # type: ignore[arg-type]

    @classmethod
    def conclude(cls, details: Mapping[str, Any], checks: Sequence[Check]) -> Mapping[str, Any]:
        """Return the details with the verdict `inconclusive` if no attack fools its own source."""
        broken = [check for check in checks if check.name == FOOLS_SOURCE and check.status == "FAIL"]
        if not broken or details.get("verdict") in (None, "fell"):
            return details
        measured = details["text"].partition(": ")[2]
        return {**details, "verdict": "inconclusive", "text": f"inconclusive, the attack is too weak: {measured}; {broken[0].text}"}

    @classmethod
    def summary(
        cls, source: Mapping[str, Any], rows: NDArray[np.int64], labels: NDArray[np.int64], predicted: Mapping[str, NDArray[np.int64]]
    ) -> dict[str, Any]:
        """Return whether the defence fell: under the condition with the lowest accuracy, and for the worst case of each image.

        `verdict` is `fell` if more than half of the images that are classified correctly when clean are misclassified in the worst case,
        by the upper end of the interval; `inconclusive` if the worst case is known to no better than 20 points; `held` if the intervals of
        clean and worst-case accuracy overlap; else `weakened`.
        """
        attacked = {name: classes == labels for name, classes in predicted.items() if name != CLEAN and not name.startswith(NOISE)}
        if CLEAN not in predicted or not attacked:
            return {}
        is_clean, is_robust = predicted[CLEAN] == labels, np.all(list(attacked.values()), axis=0)
        clean, worst, defense = rate(is_clean), rate(is_robust), rate(is_robust[is_clean])
        strongest = min(attacked, key=lambda name: int(attacked[name].sum()))
        verdict = _verdict(clean, worst, defense)
        text = (
            f"{_TEXTS[verdict]}: {_percent(clean)} -> {_percent(worst)} of {worst.n} images under attack, in the worst case of each image"
        )
        return {
            "verdict": verdict,
            "text": text,
            "strongest": strongest,
            "clean": asdict(clean),
            "worst_case": asdict(worst),
            "defense_rate": asdict(defense),
        }


_TEXTS = {
    "fell": "the defence fell",
    "weakened": "the attack weakens the defence",
    "held": "the defence held",
    "inconclusive": "inconclusive, too few images",
}
_TRAINED = "with the masks as trained"
_WIDEST = 0.2  # of an interval from which a verdict follows


def _verdict(clean: Rate, worst: Rate, defense: Rate) -> str:
    if defense.high is not None and defense.high < 0.5:
        return "fell"
    if worst.low is None or worst.high is None or worst.high - worst.low > _WIDEST:
        return "inconclusive"
    return "held" if clean.low is not None and worst.high is not None and worst.high >= clean.low else "weakened"


def _percent(value: Rate) -> str:
    if value.value is None or value.low is None or value.high is None:
        return "-"
    return f"{100 * value.value:.1f} % ({100 * value.low:.1f} to {100 * value.high:.1f})"
