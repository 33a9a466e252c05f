"""The transfer probe: adversarial examples of surrogate networks, sent to targets that the attacker does not know."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError, MissingExtraError
from .base import NOISE, Condition, InputType, LabelledImages, OnProgress, Perturb, PerturbationProbe, ProbeImage, random_noise
from .independence import independence_check
from .outcome import STATUSES, Check, Status, plain_json
from .targets import Target

if TYPE_CHECKING:
    from defensemble_training import AttackPreset, Examples, SourceAttack, Surrogate

Average = Literal["none", "probabilities", "logits"]
FOOLS_SOURCE = "fools its source"
"""Name of the check, in files of examples, that an attack fools its own source."""
_MOST_TEXTS = 6


@dataclass(frozen=True)
class Transfer(PerturbationProbe):
    """Accuracy on adversarial examples that were crafted on surrogates: one query an image. Source: arXiv 1911.08432, tables 2 to 5 and 8.

    The examples are crafted once into a file, which can be used for any number of targets. Labels of the images are the attacker's.
    Random noise of each norm is the baseline: each value goes up or down by epsilon.

    Attributes:
        examples: The file. It is written, or continued, if there are surrogates; otherwise it is only read.
        surrogates: Checkpoints of the networks that the attacker has. They must not be members of the target.
        presets: The paper's presets by name, such as `paper-table2` or `paper-pgd16`, or your own settings.
        epsilons: Use these values of epsilon, in 1/255, in place of those of the presets; () for those of the presets.
        average: What the surrogates average to be one source: `probabilities` or `logits`; `none` attacks each of them.

    Raises:
        InputError: A value is out of range.

    Example:
        >>> measure(Transfer(Path("pgd16.examples"), ("surrogate.safetensors",), ("paper-pgd16",)), targets, data)
    """

    examples: Path
    surrogates: tuple[str | os.PathLike[str], ...] = ()
    presets: tuple[str | AttackPreset, ...] = ("paper-table2",)
    epsilons: tuple[float, ...] = ()
    average: Average = "none"

    name: ClassVar[str] = "transfer"
    paper: ClassVar[str | None] = "arXiv:1911.08432, tables 2 to 5 and 8"

    def __post_init__(self) -> None:
        if self.average not in ("none", "probabilities", "logits"):
            raise InputError(f"average must be none, probabilities or logits, got {self.average!r}")
        if not self.surrogates and not Path(self.examples).exists():
            raise InputError(
                f"the list of surrogates is empty, and {self.examples} does not exist: pass checkpoints (--surrogate FILE), or a file of "
                "examples (--examples FILE)"
            )
        if not self.presets:
            raise InputError("the list of presets is empty; expected at least one, such as paper-pgd16")
        for epsilon in self.epsilons:
            if not 0 <= epsilon <= 255:
                raise InputError(f"epsilons must be in [0, 255], in 1/255, such as 8; got {epsilon:g}")
        if len(set(self.epsilons)) != len(self.epsilons):
            raise InputError(f"epsilons must be different, got {', '.join(f'{epsilon:g}' for epsilon in self.epsilons)}")

    @property
    def title(self) -> str:
        """The attack."""
        return "Transferred adversarial examples"

    @property
    def threat_model(self) -> str:
        """What the attacker has."""
        names = self._surrogate_names()
        networks = f"{'another network' if len(names) == 1 else 'other networks'} ({', '.join(names)})"
        return (
            f"The attacker has {networks} and the images' classes, but neither weights, masks nor responses of the target. "
            f"{self._sources_text()}One query an image."
        )

    def settings(self) -> dict[str, Any]:
        """Return the attacks and the surrogates, with their digests, as JSON: where the files are does not matter."""
        if not self.surrogates:
            return _settings_of(self._opened)
        surrogates = [surrogate.identity() for surrogate in self._loaded]
        return plain_json({"seed": self.seed, "attacks": [attack.to_values() for attack in self.attacks], "surrogates": surrogates})

    @cached_property
    def attacks(self) -> tuple[SourceAttack, ...]:
        """The attacks, one for each condition."""
        if not self.surrogates:
            return self._opened.attacks
        presets = [preset for given in self.presets for preset in _attack_presets(given, self.epsilons)]
        names = [preset.name for preset in presets]
        if len(set(names)) != len(names):
            raise InputError(f"the presets have an attack twice: {', '.join(names)}. Name each one once.")
        if reserved := [name for name in names if name.startswith(NOISE)]:
            raise InputError(f"names that begin with {NOISE!r} are those of the baseline; got {reserved[0]!r}: use another name")
        return tuple(attack for preset in presets for attack in self._source_attacks(preset, self._surrogate_names()))

    def _source_attacks(self, preset: AttackPreset, surrogates: tuple[str, ...]) -> list[SourceAttack]:
        """Return the attacks of a preset: one for each source."""
        from defensemble_training import SourceAttack

        if len(surrogates) == 1:
            return [SourceAttack(preset.name, preset, surrogates)]
        if self.average == "none":
            return [SourceAttack(f"{preset.name} from {name}", preset, (name,)) for name in surrogates]
        return [SourceAttack(f"{preset.name} from averaged {self.average}", preset, surrogates, self.average)]

    def conditions(self) -> Sequence[Condition]:
        """Return a condition for each norm with random noise, as the baseline, and one for each preset and source."""
        sizes = sorted({round(255 * attack.preset.epsilon, 6) for attack in self.attacks if attack.preset.epsilon})
        noise = [Condition(f"{NOISE} {size:g}/255", size, "1/255", NOISE) for size in sizes]
        return [*noise, *(_condition(attack) for attack in self.attacks)]

    def cost_of_preparing(self, rows: NDArray[np.int64]) -> str | None:
        """Return how many examples will be crafted, and by how many gradients; None if the file has them."""
        if not self.surrogates or self._has_examples(rows):
            return None
        each = sum((attack.preset.steps or 1) * (attack.preset.search_steps or 1) * max(attack.draws, 1) for attack in self.attacks)
        images = f"{len(rows):,} image{'' if len(rows) == 1 else 's'}"
        attacks = f"{len(self.attacks)} attack{'' if len(self.attacks) == 1 else 's'}"
        return f"crafting examples: {images} x {attacks}, up to {len(rows) * each:,} gradient steps"

    def prepare(self, data: LabelledImages, rows: NDArray[np.int64], on_progress: OnProgress) -> Perturb:
        """Craft the examples that the file does not have yet, and check that they are of these images."""
        if self.surrogates and not self._has_examples(rows):
            with _needs_training():
                from defensemble_training import craft

                craft(
                    self.examples,
                    self._loaded,
                    self.attacks,
                    data.images,
                    data.labels,
                    rows=rows.tolist(),
                    class_names=data.class_names or None,
                    seed=self.seed,
                    on_progress=lambda name, done, total: on_progress("crafting examples", done, total),
                )
        if data.class_names and data.class_names != self._opened.class_names:
            raise InputError(
                f"{self.examples} has examples with the classes {', '.join(self._opened.class_names)[:200]}; the targets have "
                f"{', '.join(data.class_names)[:200]}. Use targets with the same classes in the same order, or craft a new file."
            )
        self.is_source_fooled(rows, "float32")  # raises an error if the file lacks one of the images
        return self.perturb

    def perturb(self, image: ProbeImage, condition: Condition, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the example of an image, or the image with random noise of the same norm."""
        if condition.group == NOISE:
            return random_noise(image.pixels, "linf", (condition.value or 0.0) / 255, rng)
        return self._opened.example(condition.name, image.row, image.pixels, image.label)

    def is_source_fooled(self, rows: NDArray[np.int64], input: InputType) -> Mapping[str, NDArray[np.bool_]]:
        """Return which examples, as they are sent, the source misclassifies."""
        opened, positions = self._opened, rows.tolist()
        return {attack.name: opened.is_source_fooled(attack.name, positions, eight_bit=input == "8bit") for attack in self.attacks}

    def target_checks(self, target: Target, identity: Mapping[str, Any]) -> Sequence[Check]:
        """Check that no surrogate is a member of a target."""
        return [independence_check(self._opened.surrogates, target, identity)]

    def checks(self) -> Sequence[Check]:
        """Return the checks of the attacks on their own source, those of one kind together."""
        kinds: dict[str, list[Mapping[str, Any]]] = {}
        for check in self._opened.checks:
            kinds.setdefault(check["name"], []).append(check)
        return [_joined(name, checks) for name, checks in kinds.items()]

    @cached_property
    def _opened(self) -> Examples:
        from defensemble_training import read_examples

        return read_examples(self.examples)

    @cached_property
    def _loaded(self) -> tuple[Surrogate, ...]:
        with _needs_training():
            from defensemble_training import load_surrogates

            return load_surrogates(self.surrogates)

    def _surrogate_names(self) -> tuple[str, ...]:
        if self.surrogates:
            return tuple(surrogate.name for surrogate in self._loaded)
        return tuple(surrogate.name for surrogate in self._opened.surrogates)

    def _has_examples(self, rows: NDArray[np.int64]) -> bool:
        """Return whether the file is complete and has these attacks for all images, and perhaps more: those of other shards."""
        from defensemble_training import ExamplesError, read_examples

        if not self.examples.exists():
            return False
        try:
            opened = read_examples(self.examples)
        except ExamplesError:  # incomplete: to be continued, or else refused by `craft`
            return False
        return _settings_of(opened) == self.settings() and bool(np.isin(rows, opened.rows).all())

    def _sources_text(self) -> str:
        averages = dict.fromkeys(attack.average for attack in self.attacks if attack.average != "none")
        if averages:
            return f"Gradients go through the average of the surrogates' {' or '.join(averages)}. "
        return "Each of them is attacked on its own. " if len(self._surrogate_names()) > 1 else ""


def _attack_presets(given: str | AttackPreset, epsilons: Sequence[float]) -> list[AttackPreset]:
    """Return the attacks of a preset, at other values of epsilon if there are any."""
    from defensemble_training import SpecError, at_epsilon, paper_preset

    try:
        presets = paper_preset(given).attacks if isinstance(given, str) else (given,)
        return [at_epsilon(preset, epsilon / 255) for preset in presets for epsilon in epsilons] if epsilons else list(presets)
    except SpecError as error:
        raise InputError(str(error)) from error


def _condition(attack: SourceAttack) -> Condition:
    preset = attack.preset
    group = f"{preset.algorithm}{attack.name.removeprefix(preset.name)}"
    if preset.epsilon is None:
        return Condition(attack.name, group=group)
    return Condition(attack.name, round(255 * preset.epsilon, 6), "1/255", group)


def _settings_of(examples: Examples) -> dict[str, Any]:
    return plain_json({"seed": examples.plan["seed"], "attacks": examples.plan["attacks"], "surrogates": examples.plan["surrogates"]})


def _joined(name: str, checks: Sequence[Mapping[str, Any]]) -> Check:
    """Return one check for all attacks, with the texts of the worst ones."""
    status: Status = max((check["status"] for check in checks), key=STATUSES.index)
    texts = [check["text"] for check in checks if check["status"] == status]
    if name == FOOLS_SOURCE and status != "PASS":
        status = "FAIL" if all(check["status"] != "PASS" for check in checks) else "WARN"  # one strong attack is enough
    more = f"; and {len(texts) - _MOST_TEXTS} more" if len(texts) > _MOST_TEXTS else ""
    return Check(name, status, "; ".join(texts[:_MOST_TEXTS]) + more)


@contextmanager
def _needs_training() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(f"surrogates need the training extra ({error}): pip install 'defensemble[train]'") from error
