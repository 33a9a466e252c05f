"""The wiring of an ensemble: all faults at once, each once, and the line of a field in a file that a hand has written."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from google.protobuf import text_format
from hypothesis import given, strategies as st
from tritonclient.grpc import model_config_pb2 as schema

from defensemble_repository.checks.finding import FieldLocator
from defensemble_repository.checks.wiring import wiring_problems
from defensemble_repository.configs import Interface, averaging_config, ensemble_config, member_config
from defensemble_repository.ensemble import Ensemble, Member
from tests.support.facts import assert_each, assert_facts


def wired(members: int, classes: int = 3, batch: int = 8) -> tuple[schema.ModelConfig, dict[str, schema.ModelConfig]]:
    """An ensemble of `m0`, `m1`, ... as an export writes it, and the configurations of its steps' models."""
    ensemble = Ensemble("e", tuple(Member(f"m{index}") for index in range(members)))
    interface = Interface((1, 4, 4), classes, batch)
    known = {f"m{index}": member_config(f"m{index}", interface) for index in range(members)}
    config = ensemble_config(ensemble, interface)
    averaging = averaging_config(ensemble, classes, batch, digest="")
    averaging.name = config.ensemble_scheduling.step[members].model_name = "average_x"
    return config, {**known, "average_x": averaging}


def faults(config: schema.ModelConfig, known: dict[str, schema.ModelConfig]) -> list[str]:
    return [fault.text for fault in wiring_problems(config, known)]


@given(members=st.integers(1, 7), classes=st.integers(1, 9), batch=st.integers(1, 99))
def test_what_an_export_writes_has_no_fault(members: int, classes: int, batch: int) -> None:
    assert faults(*wired(members, classes, batch)) == []


@given(data=st.data(), members=st.integers(1, 4))
def test_one_wrong_name_is_one_fault_that_says_both_names(data: st.DataObject, members: int) -> None:
    config, known = wired(members)
    index = data.draw(st.integers(0, members))
    step = config.ensemble_scheduling.step[index]
    key = data.draw(st.sampled_from(sorted(step.output_map)))
    right = step.output_map[key]
    step.output_map[key] = "mistyped"
    (told,) = faults(config, known)
    assert f"'{right}'" in told
    assert "'mistyped'" in told


@given(data=st.data(), members=st.integers(1, 4))
def test_the_names_of_the_tensors_between_steps_and_the_order_of_steps_are_free(data: st.DataObject, members: int) -> None:
    config, known = wired(members)
    steps = config.ensemble_scheduling.step
    for step in steps:
        for entries in (step.input_map, step.output_map):
            for key, tensor in list(entries.items()):
                entries[key] = f"between-{tensor}" if tensor.startswith("logits_") else tensor
    order = data.draw(st.permutations(list(steps)))
    del steps[:]
    steps.extend(order)
    assert faults(config, known) == []


@given(data=st.data())
def test_several_faults_are_told_at_once(data: st.DataObject) -> None:
    config, known = wired(3)
    edits: dict[str, Callable[[], object]] = {
        "m0 (4)": lambda: setattr(known["m0"], "max_batch_size", 4),
        "step 2 (m1) gives it as FP32 [5], but step 4 (average_x) takes it as FP32 [3]": lambda: (
            known["m1"].output[0].dims.__setitem__(0, 5)
        ),
        "maps the input 'pictures'": lambda: config.ensemble_scheduling.step[2].input_map.update({"pictures": "images"}),
        "its output 'more' is written by no step": lambda: config.output.add(name="more", data_type=schema.TYPE_FP32, dims=[1]),
        "has instance_group": lambda: config.instance_group.add(count=1),
        "step 5 has no model_name": lambda: config.ensemble_scheduling.step.add(
            input_map={"a": "logits_0"}, output_map={"b": "images_too"}
        ),
    }
    chosen = data.draw(st.sets(st.sampled_from(sorted(edits)), min_size=1))
    for name in sorted(chosen):
        edits[name]()
    told = "\n".join(faults(config, known))
    assert [name for name in sorted(chosen) if name not in told] == []
    assert [name for name in sorted(edits) if name not in chosen and name in told] == []


def test_a_model_that_is_not_known_is_not_judged() -> None:
    config, known = wired(2)
    del known["m0"]
    config.ensemble_scheduling.step[0].input_map["anything"] = "images"
    assert faults(config, known) == []


def test_a_model_that_leaves_its_tensors_to_its_file_is_not_judged() -> None:
    config, known = wired(2)
    known["m0"].ClearField("input")
    known["m0"].ClearField("output")
    assert faults(config, known) == []


def test_an_optional_input_may_stay_unmapped() -> None:
    config, known = wired(2)
    known["m0"].input.add(name="hint", data_type=schema.TYPE_FP32, dims=[1], optional=True)
    assert faults(config, known) == []
    known["m0"].input[1].optional = False
    (told,) = faults(config, known)
    assert_facts(told, "step 1 | m0 | 'hint' | input_map")


def test_a_model_without_batches_fits_where_its_first_dim_is_the_batch() -> None:
    config, known = wired(2)
    known["m0"].max_batch_size = 0
    known["m0"].input[0].dims[:] = [-1, 1, 4, 4]
    known["m0"].output[0].dims[:] = [-1, 3]
    assert faults(config, known) == []
    known["m0"].input[0].dims[:] = [1, 1, 4, 5]
    (told,) = faults(config, known)
    assert_facts(told, "'images' | FP32 [1, 4, 4] | step 1 | m0 | FP32 [1, 1, 4, 5]")


def test_a_tensor_is_written_once_and_no_step_writes_what_the_caller_gives() -> None:
    config, known = wired(2)
    step = config.ensemble_scheduling.step[1]
    step.output_map["logits"] = "logits_0"
    assert_each(faults(config, known), "step 2 | m1 | 'logits_0' | step 1 | m0 | once | 'logits_1'")
    step.output_map["logits"] = "images"
    assert_facts(faults(config, known)[0], "step 2 | m1 | 'images'")


def test_what_follows_from_something_missing_is_not_told_too() -> None:
    for field in ("input", "output"):
        config, known = wired(2)
        config.ClearField(field)
        assert_each(faults(config, known), f"no {field}")
    for field in ("input_map", "output_map"):
        config, known = wired(2)
        config.ensemble_scheduling.step[1].ClearField(field)
        assert_each(faults(config, known), f"step 2 | m1 | {field}")
    config, known = wired(2)
    config.ensemble_scheduling.step[1].output_map["scores"] = "more"
    assert_each(faults(config, known), "step 2 | m1 | output 'scores' | 'logits'")
    config.input[0].ClearField("dims")
    assert_facts(faults(config, known)[0], "'images' | dims")
    assert len(faults(config, known)) == 2


def test_circles_are_told_once_each_without_the_steps_behind_them() -> None:
    config, known = wired(2)
    known = {name: model for name, model in known.items() if name.startswith("m")}
    for name, reads, writes in (
        ("a", "three", "one"),
        ("b", "one", "two"),
        ("c", "two", "three"),
        ("d", "own", "own"),
        ("z", "two", "end"),
    ):
        config.ensemble_scheduling.step.add(model_name=name, model_version=1, input_map={"in": reads}, output_map={"out": writes})
    config.output.add(name="end", data_type=schema.TYPE_FP32, dims=[1])
    told = faults(config, known)
    assert [text for text in told if "circle" in text] == told
    steps = [re.findall(r"step \d \(\w\)", text) for text in told]
    assert steps == [["step 4 (a)", "step 6 (c)", "step 5 (b)", "step 4 (a)"], ["step 7 (d)"]]


def test_an_ensemble_without_steps_is_one_fault() -> None:
    config, known = wired(1)
    config.ensemble_scheduling.ClearField("step")
    assert_each(faults(config, known), "no steps")


HAND_WRITTEN = """# Written by hand: { not a message
name: "e" platform: 'ensemble'
max_batch_size: 8
input [
  { name: "images", data_type: TYPE_FP32, dims: [ 1, 4, 4 ] },
  {
    name: "more"  # [
    dims: 3
  }
]
ensemble_scheduling <
  step [
    { model_name: "a}" model_version: 1 input_map { key: "x" value: "images" } },
    {
      model_name: "b" "c";
      input_map { key: "x" value: "images" }
      input_map {
        key: "y"
        value: "logits_2"
      }
    }
  ]
>
parameters: { key: "weights" value: { string_value: "[1.0, 2.0]" } }
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("platform",), 2),
        (("max_batch_size",), 3),
        ((("input", 0), "dims"), 5),
        ((("input", "name", "more"), "dims"), 8),
        ((("input", 1),), 6),
        (("ensemble_scheduling", ("step", 0), "model_version"), 13),
        (("ensemble_scheduling", ("step", 1)), 14),
        (("ensemble_scheduling", ("step", "model_name", "bc"), "model_name"), 15),
        (("ensemble_scheduling", ("step", 1), ("input_map", "key", "y")), 17),
        (("ensemble_scheduling", ("step", 1), ("input_map", "key", "y"), "value"), 19),
        (("ensemble_scheduling", ("step", 1), ("output_map", "key", "y")), 14),
        (("ensemble_scheduling", ("step", 7)), 11),
        ((("parameters", "key", "weights"), "value", "string_value"), 24),
        (("output", "dims"), None),
    ],
)
def test_the_line_of_a_field_is_found_however_the_file_is_laid_out(path: tuple[str | tuple[str, int]], line: int | None) -> None:
    text_format.Parse(HAND_WRITTEN, schema.ModelConfig())
    assert FieldLocator(HAND_WRITTEN).line_of(*path) == line


@given(members=st.integers(1, 5))
def test_the_lines_of_what_an_export_writes_hold_what_is_looked_for(members: int) -> None:
    config, _ = wired(members)
    text = text_format.MessageToString(config)
    lines = text.splitlines()
    for index, step in enumerate(config.ensemble_scheduling.step):
        for key, tensor in step.input_map.items():
            line = FieldLocator(text).line_of("ensemble_scheduling", ("step", index), ("input_map", "key", key), "value")
            assert line is not None
            assert (lines[line - 2].strip(), lines[line - 1].strip()) == (f'key: "{key}"', f'value: "{tensor}"')
    assert FieldLocator(text_format.MessageToString(config, as_one_line=True)).line_of("ensemble_scheduling", ("step", 0), "model_name") == 1
