"""`check_ensemble` and a real Triton reject the same ensembles. One server is asked to load each of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import urllib3
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2 as schema

from defensemble_export import check_ensemble, check_repository, planned_files, write_files
from defensemble_repository.checks.repository import problems_from_findings
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.target import EMBEDDED
from defensemble_repository.view import RepositoryView
from defensemble_server import Server, serve
from tests.support import tiny
from tests.support.calls import FREE

RANDOM = 60


def step(config: schema.ModelConfig, index: int) -> schema.ModelEnsembling.Step:
    found: schema.ModelEnsembling.Step = config.ensemble_scheduling.step[index]
    return found


def add_step(config: schema.ModelConfig, model: str, inputs: dict[str, str], outputs: dict[str, str]) -> None:
    added = config.ensemble_scheduling.step.add(model_name=model, model_version=1)
    added.input_map.update(inputs)
    added.output_map.update(outputs)


def add_ensemble(config: schema.ModelConfig, name: str) -> None:
    add_step(config, name, {"images": "images"}, {"probabilities": "more"})
    config.output.add(name="more", data_type=schema.TYPE_FP32, dims=[3])


def all_of(*edits: Callable[[schema.ModelConfig], object]) -> Callable[[schema.ModelConfig], object]:
    def edit(config: schema.ModelConfig) -> None:
        for one in edits:
            one(config)

    return edit


# Hand edits of an ensemble. The test asks Triton whether it accepts each of them.
EDITS: dict[str, Callable[[schema.ModelConfig], object]] = {
    "as-exported": lambda config: None,
    "no-steps": lambda config: config.ensemble_scheduling.ClearField("step"),
    "no-scheduling": lambda config: config.ClearField("ensemble_scheduling"),
    "member-missing": lambda config: setattr(step(config, 0), "model_name", "nobody"),
    "model-unnamed": lambda config: step(config, 0).ClearField("model_name"),
    "version-missing": lambda config: setattr(step(config, 0), "model_version", 7),
    "version-unsaid": lambda config: step(config, 0).ClearField("model_version"),
    "version-not-served": lambda config: all_of(
        lambda config: setattr(step(config, 0), "model_name", "twice"), lambda config: setattr(step(config, 0), "model_version", 1)
    )(config),
    "version-served": lambda config: all_of(
        lambda config: setattr(step(config, 0), "model_name", "twice"), lambda config: setattr(step(config, 0), "model_version", 2)
    )(config),
    "other-member": lambda config: setattr(step(config, 1), "model_name", "gamma"),
    "other-classes": lambda config: setattr(step(config, 0), "model_name", "four"),
    "other-images": lambda config: setattr(step(config, 0), "model_name", "large"),
    "batch-too-large": lambda config: setattr(config, "max_batch_size", 9),
    "batch-smaller": lambda config: setattr(config, "max_batch_size", 4),
    "batch-of-a-member": lambda config: setattr(step(config, 0), "model_name", "few"),
    "batch-below-0": lambda config: setattr(config, "max_batch_size", -1),
    "input-unmapped": lambda config: step(config, 2).input_map.pop("logits_1"),
    "input-unknown": lambda config: step(config, 0).input_map.update({"pictures": "images"}),
    "output-unknown": lambda config: step(config, 0).output_map.update({"shares": "shares"}),
    "inputs-unsaid": lambda config: step(config, 0).ClearField("input_map"),
    "outputs-unsaid": lambda config: step(config, 0).ClearField("output_map"),
    "written-twice": lambda config: step(config, 1).output_map.update({"logits": "logits_0"}),
    "written-by-two-steps": lambda config: config.ensemble_scheduling.step.append(step(config, 2)),
    "read-but-not-written": lambda config: step(config, 2).input_map.update({"logits_1": "logits_9"}),
    "written-but-not-read": lambda config: add_step(config, "gamma", {"images": "images"}, {"logits": "logits_9"}),
    "output-not-written": lambda config: config.output.add(name="more", data_type=schema.TYPE_FP32, dims=[3]),
    "output-not-declared": lambda config: config.ClearField("output"),
    "measure-not-declared": lambda config: config.output.pop(),
    "input-not-read": lambda config: config.input.add(name="more", data_type=schema.TYPE_FP32, dims=[3]),
    "input-not-declared": lambda config: config.ClearField("input"),
    "input-renamed": lambda config: setattr(config.input[0], "name", "pictures"),
    "input-of-integers": lambda config: setattr(config.input[0], "data_type", schema.TYPE_INT32),
    "input-of-no-type": lambda config: config.input[0].ClearField("data_type"),
    "input-of-no-dims": lambda config: config.input[0].ClearField("dims"),
    "input-of-dim-0": lambda config: config.input[0].dims.__setitem__(0, 0),
    "input-of-other-dims": lambda config: config.input[0].dims.__setitem__(1, 5),
    "output-of-integers": lambda config: setattr(config.output[0], "data_type", schema.TYPE_INT32),
    "output-of-other-dims": lambda config: config.output[0].dims.__setitem__(0, 4),
    "output-of-two-dims": lambda config: config.output[0].dims.append(1),
    "member-probabilities-of-another-count": lambda config: config.output[1].dims.__setitem__(0, 3),
    "labels-not-there": lambda config: setattr(config.output[0], "label_filename", "nowhere.txt"),
    "circle": lambda config: all_of(
        lambda config: add_step(config, "average", {"logits_0": "one", "logits_1": "logits_0"}, {"probabilities": "two"}),
        lambda config: add_step(config, "average", {"logits_0": "two", "logits_1": "logits_0"}, {"probabilities": "one"}),
    )(config),
    "reads-what-it-writes": lambda config: add_step(
        config, "average", {"logits_0": "one", "logits_1": "logits_0"}, {"probabilities": "one"}
    ),
    "labelled-output-declared-twice": lambda config: config.output.append(config.output[0]),
    "instances": lambda config: config.instance_group.add(count=1, kind=schema.ModelInstanceGroup.KIND_CPU),
    "optimization": lambda config: setattr(config.optimization, "priority", 1),
    "warmup": lambda config: config.model_warmup.add(name="one", batch_size=1),
    "backend": lambda config: setattr(config, "backend", "onnxruntime"),
    "platform": lambda config: config.ClearField("platform"),
    "steps-in-another-order": lambda config: config.ensemble_scheduling.step.sort(key=lambda one: one.model_name, reverse=True),
    "itself": lambda config: add_step(config, "itself", {"images": "images"}, {"probabilities": "logits_9"}),
    "contains-ensemble": lambda config: add_ensemble(config, "as-exported"),
    "contains-broken-ensemble": lambda config: add_ensemble(config, "written-twice"),
    "circle-of-two": lambda config: add_ensemble(config, "circle-of-two-too"),
    "circle-of-two-too": lambda config: add_ensemble(config, "circle-of-two"),
}
# Edits that Triton accepts and `check_ensemble` rejects, with the reason.
STRICTER: dict[str, Callable[[schema.ModelConfig], object]] = {
    # The members accept one size, and a caller could send any.
    "input-of-any-size": lambda config: config.input[0].dims.__setitem__(1, -1),
    # Its meaning changes when a version is added.
    "version-newest": lambda config: setattr(step(config, 0), "model_version", -1),
    # Another model would overwrite the caller's images before a member reads them.
    "input-written": lambda config: add_step(config, "same", {"images": "images"}, {"same": "images"}),
    # It is certainly a mistake.
    "input-declared-twice": lambda config: config.input.append(config.input[0]),
    "output-declared-twice": lambda config: config.output.append(config.output[2]),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.write_repository(tmp_path_factory.mktemp("checked") / "repository", {"alpha": 1, "beta": 2}, ensemble="base")
    others = [
        tiny.member("gamma", 3),
        tiny.member("twice", 4),
        tiny.member("few", 5),
        tiny.member("four", 6, onnx=tiny.linear_onnx(6, classes=4), num_classes=4, class_names=("a", "b", "c", "d")),
        tiny.member("large", 7, onnx=tiny.linear_onnx(7, shape=(1, 5, 5)), input_shape=(1, 5, 5)),
    ]
    write_files(folder, planned_files(folder, others, ensemble=None, max_batch_size=8))
    tiny.write_second_version(folder, "twice", 8)
    tiny.edit_config(folder, "few", max_batch_size=4)
    twice = config_from_pbtxt((folder / "twice/config.pbtxt").read_text(), "twice")
    twice.version_policy.latest.num_versions = 1
    (folder / "twice/config.pbtxt").write_bytes(pbtxt_from_config(twice))
    write_identity(folder)
    base = config_from_pbtxt((folder / "base/config.pbtxt").read_text(), "base")
    averages = [one.model_name for one in base.ensemble_scheduling.step[2:]]
    for name, edit in (EDITS | STRICTER).items():
        write_ensemble(folder, base, name, edit)
    for number in range(RANDOM):
        write_ensemble(folder, base, f"random-{number}", partial(mutate, chance=random.Random(number), averages=averages))
    return folder


def write_identity(folder: Path) -> None:
    """Write a model `same`, which returns its input images."""
    shape: list[str | int] = ["batch", *tiny.SHAPE]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("images", "same")]
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["same"])], "same", tensors[:1], tensors[1:])
    config = schema.ModelConfig(name="same", backend="onnxruntime", max_batch_size=8)
    config.input.add(name="images", data_type=schema.TYPE_FP32, dims=tiny.SHAPE)
    config.output.add(name="same", data_type=schema.TYPE_FP32, dims=tiny.SHAPE)
    (folder / "same/1").mkdir(parents=True)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    (folder / "same/1/model.onnx").write_bytes(model.SerializeToString())
    (folder / "same/config.pbtxt").write_bytes(pbtxt_from_config(config))


def write_ensemble(folder: Path, base: schema.ModelConfig, name: str, edit: Callable[[schema.ModelConfig], object]) -> None:
    config = schema.ModelConfig()
    config.CopyFrom(base)
    config.name = name
    edit(config)
    for one in config.ensemble_scheduling.step:
        if one.model_name == "average":
            one.model_name = base.ensemble_scheduling.step[2].model_name
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "1/placeholder").touch()
    (folder / name / "labels.txt").write_bytes((folder / "base/labels.txt").read_bytes())
    (folder / name / "config.pbtxt").write_bytes(pbtxt_from_config(config))


def mutate(config: schema.ModelConfig, chance: random.Random, averages: list[str]) -> None:
    """Apply one or two random edits of names, tensors, shapes and batches."""
    for _ in range(chance.randint(1, 2)):
        steps = config.ensemble_scheduling.step
        if not steps or not config.input or not config.output:
            return
        one = chance.choice(steps)
        tensors = sorted({"images", "more", *(value for each in steps for value in (*each.input_map.values(), *each.output_map.values()))})
        models = ["alpha", "beta", "gamma", "four", "large", "few", *averages]
        kind = chance.choice(["input", "output", "model", "take", "copy", "take out", "declare", "dims", "type", "batch", "shuffle"])
        if kind == "input" and one.input_map:
            one.input_map[chance.choice(sorted(one.input_map))] = chance.choice(tensors)
        elif kind == "output" and one.output_map:
            # Not an input of the ensemble: there the check is stricter.
            one.output_map[chance.choice(sorted(one.output_map))] = chance.choice([each for each in tensors if each != "images"])
        elif kind == "model":
            one.model_name = chance.choice(models)
        elif kind == "take":
            del steps[chance.randrange(len(steps))]
        elif kind == "copy":
            steps.append(one)
        elif kind == "take out":
            config.output.pop(chance.randrange(len(config.output)))
        elif kind == "declare":
            name = chance.choice([each for each in tensors if each not in {output.name for output in config.output}])
            config.output.add(name=name, data_type=schema.TYPE_FP32, dims=[chance.choice([3, 4, -1])])
        elif kind == "dims":
            tensor = chance.choice([*config.input, *config.output])
            # For free image sizes the check is stricter.
            tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice([1, 3, 4] if tensor.name == "images" else [-1, 1, 3, 4])
        elif kind == "type":
            chance.choice([*config.input, *config.output]).data_type = chance.choice([schema.TYPE_FP16, schema.TYPE_FP32])
        elif kind == "batch":
            config.max_batch_size = chance.choice([0, 1, 4, 8, 9])
        else:
            chance.shuffle(order := list(steps))
            del steps[:]
            steps.extend(order)


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with serve(repository, FREE) as running:
        yield running
    assert tiny.leftovers(repository) == []


def test_serve_rejects_what_check_rejects_with_the_same_messages(repository: Path, server: Server) -> None:
    check = problems_from_findings(check_repository(RepositoryView(repository), EMBEDDED))
    # An output that is also an input, or that a step reads, loads; Triton then answers no call for another output.
    unanswered = {name for name, text in server.problems.items() if text.startswith("/v2/models/") and "unexpected deadlock" in text}
    dependent = {name for name, text in server.problems.items() if text.startswith("its step '")}
    assert {name: text for name, text in server.problems.items() if name not in unanswered | dependent} == check
    assert dependent == {"contains-broken-ensemble"}
    assert len(unanswered) < RANDOM / 10
    assert set(STRICTER) <= set(check)


def triton_refuses(server: Server, name: str) -> str | None:
    """Return why a server does not load a model; None if it does."""
    answer = urllib3.request(
        "POST", f"{server.http_url}/v2/repository/models/{name}/load", headers={"x-admin-key": server.state.admin_key}, timeout=60.0
    )
    assert answer.status in (200, 400, 500), answer.data  # 500: the configuration is rejected, and the log has the reason
    return None if answer.status == 200 else str(answer.json()["error"])


def test_check_rejects_the_hand_edits_that_triton_rejects(repository: Path, server: Server) -> None:
    differences, rejected = [], 0
    for name in EDITS:
        triton = triton_refuses(server, name)
        ours = [str(one) for one in check_ensemble(RepositoryView(repository), name) if one.is_error]
        rejected += triton is not None
        if (triton is not None) != bool(ours):
            differences.append((name, triton, ours))
    assert not differences, "\n".join(map(str, differences))
    assert 30 < rejected < len(EDITS) - 5


def test_check_rejects_the_random_edits_that_triton_rejects(repository: Path, server: Server) -> None:
    differences, rejected = [], 0
    for name in (f"random-{number}" for number in range(RANDOM)):
        triton = triton_refuses(server, name)
        ours = [str(one) for one in check_ensemble(RepositoryView(repository), name) if one.is_error]
        rejected += triton is not None
        if (triton is not None) != bool(ours):
            differences.append((name, triton, ours))
    assert not differences, "\n".join(map(str, differences))
    assert RANDOM / 4 < rejected < RANDOM


def test_check_is_stricter_than_triton_only_in_listed_cases(repository: Path, server: Server) -> None:
    for name in STRICTER:
        assert triton_refuses(server, name) is None, name
        assert [one for one in check_ensemble(RepositoryView(repository), name) if one.is_error], name
