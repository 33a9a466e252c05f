"""Transferred and adaptive attacks: rates against numpy, files that are reused, and surrogates that are members."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from defensemble import InputError
from defensemble.probes import (
    Adaptive,
    Check,
    FunctionTarget,
    LabelledImages,
    ProbeImage,
    ProbeOutcome,
    RunOptions,
    Transfer,
    measure,
    served_targets,
)
from defensemble.probes.base import CLEAN
from defensemble.probes.independence import independence_check
from defensemble_server import Server
from defensemble_training import (
    ATTACKS,
    AttackPreset,
    ExamplesError,
    SourceAttack,
    SpecError,
    Surrogate,
    adversarial_examples,
    attack,
    build,
    craft,
    defect_masks,
    load_checkpoint,
    mask_digest,
    read_examples,
    round_to_8_bits,
    save_checkpoint,
)
from tests.support import tiny
from tests.support.attacked import batch, one_thread as one_thread
from tests.support.facts import assert_facts, raises
from tests.support.untrained import record_of, tiny_spec

Array = np.ndarray[Any, Any]
NAMES = ("class 0", "class 1", "class 2")
IMAGES = batch(20)[0].numpy()
ROWS = np.arange(100, 120)
SHORT = AttackPreset("short", "pgd", epsilon=8 / 255, step_size=4 / 255, steps=2)
SPECS = {"a": tiny_spec(mask_seed=1, blocks=(0,)), "b": tiny_spec(mask_seed=2, blocks=(0,)), "c": tiny_spec(mask_seed=3, blocks=(0,))}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Defective networks, which are all sensitive to their images."""
    folder, paths = tmp_path_factory.mktemp("checkpoints"), {}
    for seed, (name, spec) in enumerate(SPECS.items()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = build(spec)
            module.train()
            module(torch.rand(32, 1, 8, 8))
        paths[name] = folder / f"{name}.safetensors"
        save_checkpoint(paths[name], module.eval(), spec, record_of(spec))
    return paths


def function_of(path: Path) -> Any:
    module = load_checkpoint(path)[0]

    def classify(images: Array) -> Array:
        with torch.inference_mode():
            result: Array = module(torch.from_numpy(images.copy())).softmax(dim=1).numpy()
        return result

    return classify


def data_of(path: Path) -> LabelledImages:
    """Images whose classes are those of a network, so that it is right when clean."""
    return LabelledImages(IMAGES, function_of(path)(IMAGES).argmax(axis=1), NAMES)


def run(probe: Transfer, targets: Sequence[FunctionTarget], data: LabelledImages, **options: Any) -> ProbeOutcome:
    return measure(probe, targets, data, rows=ROWS, class_names=NAMES, options=RunOptions(**options))


def test_rates_equal_numpy(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    data, classify = data_of(checkpoints["c"]), function_of(checkpoints["c"])
    probe = Transfer(tmp_path / "a.examples", (checkpoints["a"], checkpoints["b"]), ("paper-fgsm32", SHORT))
    outcome = run(probe, [FunctionTarget("c", classify)], data)
    names = [f"{preset} from {source}" for preset in ("fgsm32", "short") for source in "ab"]
    noises, attacked = outcome.conditions[:2], outcome.conditions[2:]
    assert [condition.name for condition in attacked] == names
    assert [(condition.value, condition.unit) for condition in attacked] == [(32, "1/255")] * 2 + [(8, "1/255")] * 2
    assert [condition.group for condition in attacked] == ["fgsm from a", "fgsm from b", "pgd from a", "pgd from b"]
    assert [(noise.name, noise.value, noise.group) for noise in noises] == [
        ("random noise 8/255", 8, "random noise"),
        ("random noise 32/255", 32, "random noise"),
    ]
    noisy = np.stack([probe.perturb(ProbeImage(IMAGES[0], 0, 100), noise, probe.rng(noise, 100)) for noise in noises])
    inside = np.abs(IMAGES[0] - 0.5) < 0.5 - 32 / 255
    np.testing.assert_allclose(np.abs(noisy - IMAGES[0])[:, inside].T, np.broadcast_to([8 / 255, 32 / 255], (inside.sum(), 2)), atol=1e-6)
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    assert set(outcome.is_source_fooled) == set(names)
    for name in names:
        preset, _, source = name.split(" ")
        settings = {"fgsm32": ATTACKS["fgsm32"], "short": SHORT}[preset]
        moved = adversarial_examples(load_checkpoint(checkpoints[source])[0], IMAGES, data.labels, settings, batch_size=128)
        assert np.array_equal(outcome.targets[0].predicted[name], classify(moved).argmax(axis=1))
        fooled = function_of(checkpoints[source])(moved).argmax(axis=1) != data.labels
        assert np.array_equal(outcome.is_source_fooled[name], fooled)
    assert_facts(outcome.threat_model, "a, b")
    checks = {check.name: check for check in outcome.checks}
    assert checks["epsilon 0"].status == checks["surrogates are not members"].status == "PASS"
    assert {"huge epsilon", "twice the steps"} <= set(checks)
    assert_facts(checks["epsilon 0"].text, "fgsm32 from a | fgsm32 from b | short from b")
    values = json.loads(json.dumps(outcome.json()))
    assert [one["name"] for one in values["settings"]["surrogates"]] == ["a", "b"]
    assert values["settings"]["surrogates"][0]["mask_digest"] == mask_digest(defect_masks(load_checkpoint(checkpoints["a"])[0]))


def test_8_bit_examples_fool_the_source_after_rounding(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    data = data_of(checkpoints["a"])
    probe = Transfer(tmp_path / "a.examples", (checkpoints["a"],), (SHORT,))
    classify = function_of(checkpoints["b"])
    outcome = run(probe, [FunctionTarget("b", classify)], data, input="8bit")
    moved = adversarial_examples(load_checkpoint(checkpoints["a"])[0], IMAGES, data.labels, SHORT, batch_size=128, eight_bit=True)
    assert np.array_equal(outcome.targets[0].predicted["short"], classify(moved).argmax(axis=1))
    assert np.array_equal(outcome.is_source_fooled["short"], function_of(checkpoints["a"])(moved).argmax(axis=1) != data.labels)
    assert np.array_equal(moved, round_to_8_bits(moved))


def test_a_file_serves_other_targets_and_parts_without_surrogates(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    path, data = tmp_path / "a.examples", data_of(checkpoints["c"])
    made = Transfer(path, (checkpoints["a"],), ("paper-fgsm8",))
    assert_facts(made.cost_of_preparing(ROWS) or "", "20 images x 1 attack | 20 gradient steps")
    assert_facts(made.threat_model, "another network (a)")
    assert "Each" not in made.threat_model
    first = run(made, [FunctionTarget("c", function_of(checkpoints["c"]))], data)
    before = path.stat().st_mtime_ns
    assert made.cost_of_preparing(ROWS) is Transfer(path).cost_of_preparing(ROWS) is None
    part = LabelledImages(IMAGES[5:9], data.labels[5:9], NAMES)
    for probe in (Transfer(path), Transfer(path, (checkpoints["a"],), ("paper-fgsm8",))):
        again = measure(probe, [FunctionTarget("c", function_of(checkpoints["c"]))], part, rows=ROWS[5:9])
        assert np.array_equal(again.targets[0].predicted["fgsm8"], first.targets[0].predicted["fgsm8"][5:9])
        assert probe.settings() == made.settings()
    assert path.stat().st_mtime_ns == before


def test_examples_of_other_images_or_classes_are_rejected(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    path, data = tmp_path / "a.examples", data_of(checkpoints["c"])
    target = [FunctionTarget("c", function_of(checkpoints["c"]))]
    run(Transfer(path, (checkpoints["a"],), ("paper-fgsm8",)), target, data)
    with raises(ExamplesError, "row 100 | other pixels"):
        run(Transfer(path), target, LabelledImages(IMAGES[::-1].copy(), data.labels, NAMES))
    with raises(ExamplesError, "no examples of 20 | row 0"):
        measure(Transfer(path), target, data)
    with raises(InputError, "class 0, class 1, class 2 | x, y, z"):
        run(Transfer(path), target, replace(data, class_names=("x", "y", "z")))
    with raises(ExamplesError, "other surrogates | a with | b with"):
        run(Transfer(path, (checkpoints["b"],), ("paper-fgsm8",)), target, data)
    with raises(ExamplesError, "other attacks | fgsm8 | fgsm16"):
        run(Transfer(path, (checkpoints["a"],), ("paper-fgsm16",)), target, data)


def test_epsilons_and_epsilon_0(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    data = data_of(checkpoints["c"])
    probe = Transfer(tmp_path / "a.examples", (checkpoints["a"],), ("paper-fgsm8",), epsilons=(0, 4))
    outcome = run(probe, [FunctionTarget("c", function_of(checkpoints["c"]))], data)
    assert [(condition.name, condition.value) for condition in outcome.conditions] == [
        ("random noise 4/255", 4),
        ("fgsm8 at 0", 0),
        ("fgsm8 at 4", 4),
    ]
    assert len({condition.group for condition in outcome.conditions[1:]}) == 1
    assert np.array_equal(outcome.targets[0].predicted["fgsm8 at 0"], outcome.targets[0].predicted[CLEAN])
    opened = read_examples(tmp_path / "a.examples")
    assert np.array_equal(opened.example("fgsm8 at 0", 100, IMAGES[0], int(data.labels[0])), IMAGES[0])


def test_an_ensemble_of_surrogates_is_one_source(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    data = data_of(checkpoints["c"])
    probe = Transfer(tmp_path / "a.examples", (checkpoints["a"], checkpoints["b"]), ("paper-fgsm8",), average="probabilities")
    outcome = run(probe, [FunctionTarget("c", function_of(checkpoints["c"]))], data)
    _, condition = outcome.conditions
    assert condition.name == "fgsm8 from averaged probabilities"
    assert_facts(outcome.threat_model, "average | probabilities")


def test_adaptive_attacks_the_average_over_fresh_masks(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    probe = Adaptive(tmp_path / "a.examples", (checkpoints["a"], checkpoints["b"]), (SHORT,), draws=2)
    assert_facts(probe.cost_of_preparing(ROWS) or "", f"20 images x 3 attacks | {20 * (2 * 2 + 2 * 2 + 2)} gradient steps")
    data = data_of(checkpoints["c"])
    outcome = run(probe, [FunctionTarget("c", function_of(checkpoints["c"]))], data)
    assert [condition.name for condition in outcome.conditions] == [
        "random noise 8/255",
        "short through probabilities",
        "short through logits",
        "short with the masks as trained",
    ]
    assert [made.draws for made in read_examples(tmp_path / "a.examples").attacks] == [2, 2, 0]
    assert_facts(outcome.threat_model, "keep | masks | weights | a, b | 2 draws")
    details = outcome.targets[0].details
    both = np.all([outcome.targets[0].predicted[condition.name] == data.labels for condition in outcome.conditions[1:]], axis=0)
    assert details["worst_case"]["successes"] == both.sum()
    assert details["verdict"] in ("fell", "weakened", "held", "inconclusive")
    transferred = tmp_path / "t.examples"
    run(Transfer(transferred, (checkpoints["a"],), ("paper-fgsm8",)), [FunctionTarget("c", function_of(checkpoints["c"]))], data)
    with raises(InputError, f"{transferred} | fresh masks"):
        run(Adaptive(transferred), [FunctionTarget("c", function_of(checkpoints["c"]))], data)


@pytest.mark.parametrize(
    ("correct", "verdict"),
    [((900, 300), "fell"), ((900, 600), "weakened"), ((900, 890), "held"), ((900, 440), "weakened"), ((0, 0), "held")],
)
def test_the_verdict_follows_from_the_intervals(correct: tuple[int, int], verdict: str) -> None:
    labels = np.zeros(1000, np.int64)
    predicted = {name: np.where(np.arange(1000) < count, 0, 1) for name, count in zip((CLEAN, "x"), correct, strict=True)}
    summary = Adaptive.summary({}, labels, labels, {**predicted, "y": predicted[CLEAN], "random noise 8/255": labels + 1})
    assert summary["verdict"] == verdict
    assert summary["strongest"] == "x" or correct[0] == correct[1]
    assert_facts(summary["text"], f"{correct[0] / 10:.1f} % | -> {correct[1] / 10:.1f} % | 1000 images")
    assert Adaptive.summary({}, labels, labels, {CLEAN: labels}) == {}
    few = {name: values[:10] for name, values in predicted.items()}
    assert Adaptive.summary({}, labels[:10], labels[:10], few)["verdict"] in ("fell", "inconclusive")
    for status, expected in (("PASS", verdict), ("WARN", verdict), ("FAIL", "fell" if verdict == "fell" else "inconclusive")):
        checks = [Check("fools its source", status, "pgd16: 0 of 7 examples fool it")]  # type: ignore[arg-type]
        assert Adaptive.conclude(summary, checks)["verdict"] == expected


class Linear(nn.Module):
    """The network `tiny.linear_onnx(seed)` in torch."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.from_numpy(tiny.weights(seed)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weights


def examples_of(path: Path, seed: int) -> Transfer:
    images = tiny.images(12)
    craft(
        path,
        [Surrogate("mine", Linear(seed), tiny.CLASSES)],
        [SourceAttack("fgsm8", ATTACKS["fgsm8"], ("mine",))],
        images,
        tiny.logits(1, images).argmax(axis=1),
    )
    return Transfer(path)


@pytest.mark.parametrize(("seed", "member"), [(1, "alpha"), (2, "beta"), (5, None)])
def test_a_surrogate_among_served_members_fails(triton: Server, tmp_path: Path, seed: int, member: str | None) -> None:
    """Standard networks have no masks, and their graphs have digests of their own: the responses identify them, in an ensemble too."""
    images = tiny.images(12)
    data = LabelledImages(images, tiny.logits(1, images).argmax(axis=1), tiny.CLASSES)
    targets = served_targets(triton.http_url, ["ensemble", "alpha"], answers="top-1")
    outcome = measure(examples_of(tmp_path / "a.examples", seed), targets, data)
    checks = [check for check in outcome.checks if check.name == "surrogates are not members"]
    assert [check.status for check in checks] == ["FAIL" if member else "PASS", "FAIL" if member == "alpha" else "PASS"]
    if member:
        assert_facts(checks[0].text, f"mine | {member} | ensemble")
    moved = attack("fgsm8", Linear(seed), torch.from_numpy(images), torch.from_numpy(data.labels)).detach().numpy()
    assert np.array_equal(outcome.targets[1].predicted["fgsm8"], tiny.logits(1, moved).argmax(axis=1))
    assert all(target.queries.sent == target.queries.counted + target.queries.sanity for target in outcome.targets)


def test_masks_and_similar_responses_are_found(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    run(
        Transfer(tmp_path / "a.examples", (checkpoints["a"],), ("paper-fgsm8",)),
        [FunctionTarget("c", function_of(checkpoints["c"]))],
        data_of(checkpoints["c"]),
    )
    surrogates = read_examples(tmp_path / "a.examples").surrogates
    other, same = function_of(checkpoints["c"]), function_of(checkpoints["a"])

    def status(function: Any, **identity: Any) -> tuple[str, str]:
        check = independence_check(surrogates, FunctionTarget("target", function, max_batch=3), identity)
        return check.status, check.text

    assert status(other)[0] == "PASS"
    assert status(same)[0] == "FAIL"
    digest = surrogates[0].mask_digest
    for identity in ({"mask_digest.2": digest}, {"members": {"x": {"mask_digest.1": "other"}, "y": {"mask_digest.1": digest}}}):
        assert status(other, **identity)[0] == "FAIL"
    assert_facts(status(other, members={"y": {"mask_digest.1": digest}})[1], "target | a | masks of y | white box")
    assert status(lambda images: same(images).argmax(axis=1))[0] == "WARN"
    shifted = status(lambda images: 0.99 * same(images) + 0.01 / 3)
    assert shifted[0] == "WARN"
    assert_facts(shifted[1], "a | precision")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"surrogates": ()}, "surrogates | empty | --surrogate | --examples"),
        ({"presets": ()}, "presets | empty | paper-pgd16"),
        ({"average": "mean"}, "none, probabilities or logits | 'mean'"),
        ({"epsilons": (256,)}, "[0, 255] | 256"),
        ({"epsilons": (-1,)}, "[0, 255] | -1"),
        ({"epsilons": (float("nan"),)}, "[0, 255] | nan"),
        ({"epsilons": (4, 4)}, "different | 4, 4"),
    ],
)
def test_invalid_settings_are_rejected(tmp_path: Path, changes: dict[str, Any], facts: str) -> None:
    values: dict[str, Any] = {"examples": tmp_path / "none", "surrogates": ("a",)}
    with raises(InputError, facts):
        Transfer(**{**values, **changes})
    with raises(InputError, "draws | 0"):
        Adaptive(tmp_path / "none", ("a",), draws=0)


def test_unknown_presets_and_other_networks_are_rejected(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    target, data = [FunctionTarget("c", function_of(checkpoints["c"]))], data_of(checkpoints["c"])
    with raises(InputError, "paper-table2 | 'paper-table99'"):
        run(Transfer(tmp_path / "x", (checkpoints["a"],), ("paper-table99",)), target, data)
    with raises(InputError, "twice | table2-fgsm"):
        run(Transfer(tmp_path / "x", (checkpoints["a"],), ("paper-table2", "paper-table2-fgsm")), target, data)
    with raises(InputError, "cw | epsilon"):
        run(Transfer(tmp_path / "x", (checkpoints["a"],), ("paper-cw",), (4,)), target, data)
    with raises(SpecError, "'a' | class 0"):
        run(Transfer(tmp_path / "x", (checkpoints["a"],), ("paper-fgsm8",)), target, replace(data, class_names=("x", "y", "z")))
    wide = LabelledImages(np.zeros((20, 1, 8, 9), np.float32), data.labels, NAMES)
    with raises(SpecError, "'a' | (1, 8, 8) | (1, 8, 9)"):
        run(Transfer(tmp_path / "x", (checkpoints["a"],), ("paper-fgsm8",)), target, wide)
    assert not (tmp_path / "x").exists()
