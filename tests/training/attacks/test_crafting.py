"""Files of adversarial examples: what is in them, runs that are killed and continued, and files that do not match."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defensemble_training import (
    ATTACKS,
    AttackPreset,
    AveragedProbabilities,
    Examples,
    ExamplesError,
    RedrawnMasks,
    SourceAttack,
    SpecError,
    Surrogate,
    adversarial_examples,
    attack,
    craft,
    defect_masks,
    defective,
    load_surrogates,
    mask_digest,
    read_examples,
    round_to_8_bits,
    save_checkpoint,
)
from defensemble_training.attacks.sanity import attack_checks
from defensemble_training.evaluation import predict_classes
from tests.support.attacked import batch, defective_resnet, one_thread as one_thread, small_net
from tests.support.checkout import ROOT
from tests.support.facts import assert_facts, raises
from tests.support.untrained import record_of, tiny_spec

IMAGES, LABELS = (tensor.numpy() for tensor in batch(11))
ROWS = list(range(50, 61))
NAMES = ("ant", "bee", "cat")
PGD = AttackPreset("short", "pgd", epsilon=0.1, step_size=0.03, steps=3)
START = AttackPreset("start", "pgd", epsilon=0.1, step_size=0.03, steps=2, random_start=True)
SPEC = tiny_spec()


def masked(seed: int) -> Surrogate:
    """A defective network that is faster than those of a spec."""
    return Surrogate("masked", defective(small_net(seed), (1, 8, 8), layers=["2"], keep=SPEC.keep), NAMES, SPEC)


SURROGATES = (Surrogate("plain", small_net(1), NAMES), masked(2))
ONE = SourceAttack("short from plain", PGD, ("plain",))
BOTH = SourceAttack("short from both", PGD, ("plain", "masked"), "probabilities", draws=2)
FGSM = SourceAttack("fgsm8", ATTACKS["fgsm8"], ("masked",))


def crafted(path: Path, attacks: Any = (ONE, BOTH), **changes: Any) -> Examples:
    values = {"images": IMAGES, "labels": LABELS, "rows": ROWS, "batch_size": 4, **changes}
    return craft(path, values.pop("surrogates", SURROGATES), attacks, **values)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a complete file."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("whole") / "a.examples"
    crafted(path)
    torch.set_num_threads(before)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, whole: bytes) -> Path:
    """A complete file."""
    (tmp_path / "a.examples").write_bytes(whole)
    return tmp_path / "a.examples"


def all_of(examples: Examples, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.stack([examples.example(name, row, image, label) for row, image, label in zip(ROWS, IMAGES, LABELS, strict=True)])


def test_examples_equal_the_attack(tmp_path: Path) -> None:
    progress = list[tuple[str, int, int]]()
    examples = crafted(tmp_path / "a.examples", on_progress=lambda *done: progress.append(done))
    expected = adversarial_examples(SURROGATES[0].module, IMAGES, LABELS, PGD, batch_size=4)
    assert np.array_equal(all_of(examples, ONE.name), expected)
    source = AveragedProbabilities([surrogate.module for surrogate in SURROGATES])
    masks = RedrawnMasks([(SURROGATES[1].module, SPEC)], draws=2)
    joint = attack(PGD, source, torch.from_numpy(IMAGES), torch.from_numpy(LABELS), masks=masks).numpy()
    assert np.abs(all_of(examples, BOTH.name) - joint).max() < 1e-6

    assert examples.rows.tolist() == ROWS
    assert np.array_equal(examples.labels, LABELS)
    for name, module in ((ONE.name, SURROGATES[0].module), (BOTH.name, source)):
        moved = all_of(examples, name)
        for eight_bit, sent in ((False, moved), (True, round_to_8_bits(moved))):
            fooled = examples.is_source_fooled(name, ROWS, eight_bit=eight_bit)
            assert np.array_equal(fooled, predict_classes(module, sent) != LABELS)
    assert progress == [(name, start + done, 22) for name, start in ((ONE.name, 0), (BOTH.name, 11)) for done in (4, 8, 11)]
    assert examples.attacks == (ONE, BOTH)


def test_a_file_records_its_surrogates(path: Path) -> None:
    examples = read_examples(path)
    plain, masked = examples.surrogates
    assert (plain.name, plain.mask_digest, plain.spec) == ("plain", None, None)
    assert masked.mask_digest == mask_digest(defect_masks(SURROGATES[1].module))
    assert masked.spec is not None
    assert masked.spec["keep"] == 0.3
    assert plain.digest != masked.digest
    for record, surrogate in zip(examples.surrogates, SURROGATES, strict=True):
        with torch.no_grad():
            expected = surrogate.module(torch.from_numpy(record.images.copy())).softmax(dim=1).numpy()
        assert np.abs(record.probabilities - expected).max() < 1e-6
        everywhere = surrogate.module(torch.from_numpy(IMAGES)).softmax(dim=1).amax(dim=1).detach().numpy()
        assert len(record.images) == 8
        assert record.probabilities.max(axis=1).max() <= np.sort(everywhere)[7] + 1e-6, "the least certain ones"
    assert examples.versions["torch"]


def test_random_starts_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    start = SourceAttack("start", START, ("plain",))
    whole = crafted(tmp_path / "a.examples", [start])
    part = crafted(tmp_path / "b.examples", [start], images=IMAGES[3:5], labels=LABELS[3:5], rows=ROWS[3:5])
    for row in (3, 4):
        pair = [examples.example("start", ROWS[row], IMAGES[row], LABELS[row]) for examples in (whole, part)]
        assert np.abs(pair[0] - pair[1]).max() < 1e-6
    other = crafted(tmp_path / "c.examples", [start], seed=1)
    assert np.abs(all_of(other, "start") - all_of(whole, "start")).max() > 1e-3


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    order = np.array([2, 0, 1])  # of NAMES in the target's list
    target = [NAMES[index] for index in order]
    labels = np.argsort(order)[LABELS]
    examples = crafted(tmp_path / "a.examples", [ONE], labels=labels, class_names=target)
    expected = adversarial_examples(SURROGATES[0].module, IMAGES, LABELS, PGD, batch_size=4)
    moved = np.stack([examples.example(ONE.name, row, image, label) for row, image, label in zip(ROWS, IMAGES, labels, strict=True)])
    assert np.abs(moved - expected).max() < 1e-6
    assert np.array_equal(examples.is_source_fooled(ONE.name, ROWS), predict_classes(SURROGATES[0].module, moved) != LABELS)
    assert examples.class_names == tuple(target)


@pytest.mark.parametrize("cut", [0, 1, 3500, -1, -100])
def test_a_file_that_was_cut_off_continues_with_the_same_bytes(path: Path, whole: bytes, cut: int) -> None:
    start = whole.index(b"\n") + 1
    path.write_bytes(whole[: start + cut] if cut >= 0 else whole[:cut])
    with raises(ExamplesError, f"{path} | incomplete | 22"):
        read_examples(path)
    crafted(path)
    assert path.read_bytes() == whole


def test_bytes_that_were_lost_in_a_power_cut_are_crafted_again(path: Path, whole: bytes) -> None:
    start = whole.index(b"\n") + 1
    size = (len(whole) - start) // 22
    path.write_bytes(whole[: start + 6 * size] + bytes(3 * size))
    crafted(path)
    assert path.read_bytes() == whole


KILLED = """
import sys
from pathlib import Path
from tests.training.attacks.test_crafting import crafted
import torch
torch.set_num_threads(1)
def on_progress(name, done, total):
    print(done, flush=True)
    if done == int(sys.argv[2]):
        sys.stdin.read()
crafted(Path(sys.argv[1]), on_progress=on_progress)
"""


@pytest.mark.slow  # a process that imports torch
def test_a_run_that_was_killed_continues_with_the_same_bytes(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "a.examples"
    command = [sys.executable, "-c", KILLED, str(path), "15"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "15":
                break
        with raises(ExamplesError, f"another process | {path}"):
            crafted(path)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    remaining = list[int]()
    crafted(path, on_progress=lambda _name, done, _total: remaining.append(done))
    assert remaining == [19, 22]
    assert path.read_bytes() == whole


def test_a_complete_file_is_not_crafted_again(path: Path) -> None:
    before = path.stat().st_mtime_ns
    crafted(path, on_progress=lambda *done: pytest.fail(f"crafted {done}"))
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"seed": 1}, "other seed | 0 | 1"),
        ({"batch_size": 5}, "other batch size | 4 | 5"),
        ({"images": IMAGES[::-1].copy()}, "other images"),
        ({"labels": (LABELS + 1) % 3}, "other images"),
        ({"surrogates": (SURROGATES[0], masked(5))}, "other surrogates | masked"),
        ({"attacks": (BOTH, ONE)}, "other attacks"),
    ],
)
def test_a_file_of_other_arguments_is_rejected(path: Path, whole: bytes, changes: dict[str, Any], facts: str) -> None:
    with raises(ExamplesError, f"{path} | {facts}"):
        crafted(path, **changes)
    assert path.read_bytes() == whole


def test_examples_of_other_images_are_rejected(path: Path) -> None:
    examples = read_examples(path)
    with raises(ExamplesError, "no examples | row 49 | 11 rows"):
        examples.example(ONE.name, 49, IMAGES[0], LABELS[0])
    with raises(ExamplesError, "no examples of 1 | row 3"):
        examples.is_source_fooled(ONE.name, [50, 3])
    with raises(ExamplesError, "row 50 | other pixels"):
        examples.example(ONE.name, 50, IMAGES[1], LABELS[0])
    with raises(ExamplesError, f"row 50 | label {(LABELS[0] + 1) % 3}"):
        examples.example(ONE.name, 50, IMAGES[0], (LABELS[0] + 1) % 3)
    with raises(ExamplesError, "short from plain, short from both | 'pgd16'"):
        examples.example("pgd16", 50, IMAGES[0], LABELS[0])


def test_damage_is_found(tmp_path: Path, path: Path, whole: bytes) -> None:
    content = bytearray(whole)
    content[content.index(b"\n") + 100] ^= 1
    path.write_bytes(content)
    with raises(ExamplesError, f"{path} | damaged | row 50"):
        read_examples(path).example(ONE.name, 50, IMAGES[0], LABELS[0])
    path.write_bytes(b'{"schema": "other"}\n')
    with raises(ExamplesError, f"{path} | defensemble.examples/1"):
        read_examples(path)
    with raises(ExamplesError, f"{tmp_path / 'none'} | do not exist | --surrogate"):
        read_examples(tmp_path / "none")


def test_a_full_disk_names_the_file(tmp_path: Path, whole: bytes) -> None:
    """A limit of the file size stands for the disk; the run continues when there is space."""
    path = tmp_path / "a.examples"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, hard))
        with pytest.raises(OSError, match="too large") as caught:
            crafted(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert caught.value.filename == str(path)
    crafted(path)
    assert path.read_bytes() == whole


def test_checks_of_working_attacks_pass(tmp_path: Path) -> None:
    strong = SourceAttack("strong", AttackPreset("strong", "pgd", epsilon=0.3, step_size=0.1, steps=8), ("plain",))
    checks = crafted(tmp_path / "a.examples", [strong, FGSM]).checks
    assert [(check["name"], check["status"]) for check in checks[:4]] == [
        ("epsilon 0", "PASS"),
        ("huge epsilon", "PASS"),
        ("twice the steps", "PASS"),
        ("fools its source", "PASS"),
    ]
    assert "16 steps" in checks[2]["text"]
    assert checks[6]["name"] == "twice the steps"
    assert "does not apply" in checks[6]["text"]


def test_few_small_steps_warn(tmp_path: Path) -> None:
    slow = AttackPreset("slow", "pgd", epsilon=0.5, step_size=0.02, steps=2)
    source, images = SURROGATES[0].module, batch(200)[0].numpy()
    labels = predict_classes(source, images)
    examples = craft(tmp_path / "a.examples", SURROGATES[:1], [SourceAttack("slow", slow, ("plain",))], images, labels)
    check = examples.checks[2]
    assert (check["name"], check["status"]) == ("twice the steps", "WARN")
    chosen = np.unique(np.linspace(0, 199, 100).astype(int))
    doubled = adversarial_examples(source, images[chosen], labels[chosen], dataclasses.replace(slow, steps=4))
    more = float((predict_classes(source, doubled) != labels[chosen]).mean())
    assert_facts(check["text"], f"{examples.is_source_fooled('slow', chosen.tolist()).mean():.1%} | 4 steps | {more:.1%}")


def test_broken_attacks_fail(tmp_path: Path) -> None:
    source, is_fooled = SURROGATES[0].module, np.ones(11, np.bool_)
    right = predict_classes(source, IMAGES)

    def perturb(preset: AttackPreset, is_redrawn: bool) -> Any:
        return IMAGES if preset.epsilon else np.nextafter(IMAGES, np.float32(1))

    checks = attack_checks(ONE, source, 3, IMAGES, right, is_fooled, perturb)
    assert [check["status"] for check in checks] == ["FAIL", "WARN", "WARN", "PASS"]
    right[5:] = (right[5:] + 1) % 3  # what the source misclassifies when clean does not count
    for fooled, status in (([0, 1, 2], "PASS"), ([0, 5, 6, 7, 8], "WARN"), ([5, 6, 7, 8, 9, 10], "FAIL")):
        check = attack_checks(ONE, source, 3, IMAGES, right, np.isin(np.arange(11), fooled), perturb)[-1]
        assert (check["name"], check["status"]) == ("fools its source", status)
        assert f"{len([number for number in fooled if number < 5])} of 5" in check["text"]


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"surrogates": ()}, "surrogates | at least one | none"),
        ({"surrogates": (SURROGATES[0], SURROGATES[0])}, "surrogates | different names | plain, plain"),
        ({"attacks": ()}, "attacks | at least one | none"),
        ({"attacks": (ONE, ONE)}, "attacks | different names"),
        ({"attacks": (SourceAttack("x", PGD, ("other",)),)}, "surrogates | other | plain, masked"),
        ({"attacks": (SourceAttack("x", PGD, ("plain",), draws=2),)}, "masks | none"),
        ({"images": np.zeros((11, 1, 9, 8), np.float32)}, "'masked' | (1, 8, 8) | (1, 9, 8)"),
        ({"class_names": ("ant", "bee", "cat", "dog")}, "'plain' | 4 classes | got 3"),
        ({"class_names": ("ant", "bee", "dog")}, "'plain' | cat"),
        ({"rows": [1] * 11}, "rows | 11 | got 1"),
        ({"labels": LABELS / 2}, "labels | integers (11,)"),
        ({"images": IMAGES * 2}, "[0, 1]"),
        ({"batch_size": 0}, "batch_size | at least 1"),
        ({"seed": -1}, "seed | at least 0"),
    ],
)
def test_invalid_arguments_are_rejected(tmp_path: Path, changes: dict[str, Any], facts: str) -> None:
    with raises(SpecError, facts):
        crafted(tmp_path / "a.examples", **changes)
    assert not list(tmp_path.iterdir())


def test_invalid_sources_are_rejected() -> None:
    with raises(SpecError, "at least one surrogate"):
        SourceAttack("x", PGD, ())
    with raises(SpecError, "2 surrogates | probabilities or logits"):
        SourceAttack("x", PGD, ("a", "b"))
    with raises(SpecError, "cw | draws=0"):
        SourceAttack("x", ATTACKS["cw"], ("a",), draws=5)


def test_surrogates_from_checkpoints(tmp_path: Path) -> None:
    spec = tiny_spec()
    for name in ("a.safetensors", "b.safetensors"):
        save_checkpoint(tmp_path / name, defective_resnet(3), spec, record_of(spec))
    first, second = load_surrogates([tmp_path / "a.safetensors", str(tmp_path / "b.safetensors")], "cpu")
    assert (first.name, second.name, first.spec) == ("a", "b", spec)
    assert first.identity()["digest"] == second.identity()["digest"]
    assert first.class_names == ("class 0", "class 1", "class 2")
    with raises(SpecError, "empty | --surrogate"):
        load_surrogates([])
    with raises(SpecError, "different file names | a, a"):
        load_surrogates([tmp_path / "a.safetensors", tmp_path / "a.safetensors"])


@pytest.mark.slow  # a process
def test_reading_needs_no_torch(path: Path) -> None:
    code = (
        "import sys\nfrom defensemble_training import read_examples\n"
        f"read_examples({str(path)!r}).is_source_fooled('short from plain', [50])\nprint('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout == "False\n"


def test_a_fifo_and_a_huge_count_are_no_examples(path: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with raises(ExamplesError, f"{tmp_path / 'fifo'} | FIFO"):
        read_examples(tmp_path / "fifo")
    line, _, rest = path.read_bytes().partition(b"\n")
    header = json.loads(line)
    header["plan"]["n"] = 10**30
    path.write_bytes(json.dumps(header).encode() + b"\n" + rest)
    with raises(ExamplesError, f"{path} | {10**30}"):
        read_examples(path)
