"""The presets equal the paper's settings. The numbers here were typed from the paper's tables."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from defensemble_training import ATTACKS, AttackPreset, SpecError, at_epsilon, paper_preset
from defensemble_training.attacks.presets import PAPER_PRESETS, attack_preset
from tests.support.facts import raises

FGSM = {  # epsilon in 1/255
    "table2-fgsm": 8,
    "fgsm8": 8,
    "fgsm16": 16,
    "fgsm32": 32,
    "table12-fgsm1": 1,
    "table12-fgsm2": 2,
    "table12-fgsm4": 4,
}
PGD = {  # (step, steps, epsilon), step and epsilon in 1/255
    "table2-pgd": (2, 7, 8),
    "table3-pgd": (2, 20, 8),
    "table4-pgd": (1, 20, 16),
    "pgd16": (1, 20, 16),
    "pgd2-16": (2, 10, 16),
    "pgd32": (1, 40, 32),
    "mnist-pgd": (2.55, 40, 76.5),
    "table12-pgd2": (1, 4, 2),
    "table12-pgd4": (1, 6, 4),
    "table12-pgd8": (1, 10, 8),
    "adversarial-training": (2, 7, 8),
    "adversarial-training-3": (4, 3, 8),
}
MIFGSM = {
    "mifgsm16": (1, 40, 16),
    "mifgsm32": (1, 40, 32),
    "mifgsm32-tiny-imagenet": (1, 80, 32),
    "mifgsm64-tiny-imagenet": (1, 80, 64),
}
CW = {"cw": 40, "cw-resnet18": 20}  # kappa


def test_presets_equal_the_paper() -> None:
    assert set(ATTACKS) == {*FGSM, *PGD, *MIFGSM, *CW}
    for name, preset in ATTACKS.items():
        assert preset.name == name
        assert preset.paper
        assert preset.random_start == name.startswith("adversarial-training")
        if name in FGSM:
            assert (preset.algorithm, preset.step_size, preset.steps, preset.momentum) == ("fgsm", None, None, None)
            assert preset.epsilon == pytest.approx(FGSM[name] / 255, rel=1e-12)
        elif name in CW:
            assert (preset.algorithm, preset.confidence, preset.search_steps, preset.epsilon) == ("cw", CW[name], 30, None)
        else:
            step, steps, epsilon = {**PGD, **MIFGSM}[name]
            assert (preset.algorithm, preset.steps) == ("pgd" if name in PGD else "mifgsm", steps)
            assert preset.step_size == pytest.approx(step / 255, rel=1e-12)
            assert preset.epsilon == pytest.approx(epsilon / 255, rel=1e-12)
            assert preset.momentum == (1.0 if name in MIFGSM else None)


def test_replaced_preset_is_validated() -> None:
    shorter = dataclasses.replace(ATTACKS["cw"], steps=np.int64(50), confidence=np.float32(0.5))
    assert (shorter.steps, shorter.confidence) == (50, 0.5)
    assert type(shorter.confidence) is float
    assert attack_preset(shorter) is shorter
    with raises(SpecError, "steps | at least 1 | 0"):
        dataclasses.replace(ATTACKS["pgd16"], steps=0)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"epsilon": 8}, "epsilon | [0, 1] | 8 / 255 | got 8"),
        ({"epsilon": -0.1}, "epsilon | [0, 1] | -0.1"),
        ({"epsilon": float("nan")}, "epsilon | [0, 1] | nan"),
        ({"epsilon": True}, "epsilon | [0, 1] | True"),
        ({"epsilon": "8"}, "epsilon | [0, 1] | '8'"),
        ({"step_size": 0}, "step_size | (0, 1] | got 0"),
        ({"step_size": 2}, "step_size | (0, 1] | 2"),
        ({"momentum": 2.5}, "momentum | [0, 2] | 2.5"),
        ({"steps": 1.5}, "steps | integer | 1.5"),
        ({"momentum": None}, "mifgsm | epsilon, step_size, steps, momentum | momentum=None | 'mine'"),
        ({"confidence": 1.0}, "mifgsm | confidence=1.0 | 'mine'"),
        ({"random_start": True}, "random_start | mifgsm | True | 'mine'"),
        ({"algorithm": "ifgsm"}, "algorithm | fgsm, pgd, mifgsm, cw | 'ifgsm'"),
    ],
)
def test_invalid_settings_are_rejected(changes: dict[str, Any], facts: str) -> None:
    values: dict[str, Any] = {"name": "mine", "algorithm": "mifgsm", "epsilon": 0.1, "step_size": 0.01, "steps": 3, "momentum": 1.0}
    with raises(SpecError, facts):
        AttackPreset(**{**values, **changes})


@pytest.mark.parametrize("confidence", [-1, float("inf"), float("nan")])
def test_invalid_confidence_is_rejected(confidence: float) -> None:
    with raises(SpecError, "confidence | [0, inf)"):
        dataclasses.replace(ATTACKS["cw"], confidence=confidence)


@pytest.mark.parametrize("name", ["pgd", "", None, 3])
def test_unknown_preset_is_rejected(name: Any) -> None:
    with raises(SpecError, "AttackPreset | table2-fgsm, table2-pgd"):
        attack_preset(name)


def test_presets_need_no_torch_and_are_read_only() -> None:
    code = "import sys; from defensemble_training import ATTACKS; ATTACKS['pgd16']; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout == "False\n"
    with pytest.raises(TypeError):
        ATTACKS["mine"] = ATTACKS["pgd16"]  # type: ignore[index]


def test_every_preset_of_the_paper_has_a_name_for_probes() -> None:
    rows = {name for name in ATTACKS if not name.startswith("adversarial-training")}
    for name in rows:
        assert paper_preset(f"paper-{name}").attacks == (ATTACKS[name],)
    grouped = {attack.name for name, preset in PAPER_PRESETS.items() if len(preset.attacks) > 1 for attack in preset.attacks}
    assert grouped == rows - {"table3-pgd", "table4-pgd", "mnist-pgd", "cw", "cw-resnet18"}
    assert all(name == preset.name for name, preset in PAPER_PRESETS.items())


@pytest.mark.parametrize(
    ("name", "attacks", "n_images"),
    [
        ("paper-table2", "table2-fgsm table2-pgd", None),
        ("paper-table3", "table3-pgd", None),
        ("paper-table4", "table4-pgd", 5000),
        ("paper-table5", "fgsm8 fgsm16 fgsm32 pgd16 pgd2-16 pgd32", 5000),
        ("paper-table18", "fgsm8 fgsm16 fgsm32 pgd16 pgd2-16 pgd32", 5000),
        ("paper-cw", "cw", 1000),
        ("paper-table9", "mnist-pgd", 5000),
        ("paper-table12", "table12-fgsm1 table12-fgsm2 table12-fgsm4 table12-pgd2 table12-pgd4 table12-pgd8", None),
    ],
)
def test_tables_of_the_paper(name: str, attacks: str, n_images: int | None) -> None:
    preset = paper_preset(name)
    assert [attack.name for attack in preset.attacks] == attacks.split()
    assert preset.n_images == n_images


def test_unknown_preset_of_the_paper_is_rejected() -> None:
    with raises(SpecError, "paper-table2, paper-table3 | 'paper-table99'"):
        paper_preset("paper-table99")


def test_other_epsilon_keeps_the_proportion_of_the_steps() -> None:
    moved = at_epsilon(ATTACKS["pgd2-16"], 4 / 255)
    assert (moved.name, moved.steps) == ("pgd2-16 at 4", 10)
    assert moved.epsilon == pytest.approx(4 / 255)
    assert moved.step_size == pytest.approx(0.5 / 255)
    assert at_epsilon(ATTACKS["fgsm8"], 0.0).epsilon == 0
    assert at_epsilon(ATTACKS["pgd16"], 0.0).step_size == ATTACKS["pgd16"].step_size
    with raises(SpecError, "cw | epsilon"):
        at_epsilon(ATTACKS["cw"], 0.1)
