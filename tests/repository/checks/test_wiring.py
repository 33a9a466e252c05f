"""The wiring of an ensemble: every problem is reported once. The lines of fields in configurations of any layout."""

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


def exported(members: int, classes: int = 3, batch: int = 8) -> tuple[schema.ModelConfig, dict[str, schema.ModelConfig]]:
    """Return the configuration of an exported ensemble of `m0`, `m1`, ..., and those of the models of its steps."""
    ensemble = Ensemble("e", tuple(Member(f"m{index}") for index in range(members)))
    interface = Interface((1, 4, 4), classes, batch)
    known = {f"m{index}": member_config(f"m{index}", interface) for index in range(members)}
    config = ensemble_config(ensemble, interface)
    averaging = averaging_config(ensemble, classes, batch, digest="")
    averaging.name = config.ensemble_scheduling.step[members].model_name = "average_x"
    return config, {**known, "average_x": averaging}


def problems(config: schema.ModelConfig, known: dict[str, schema.ModelConfig]) -> list[str]:
    return [problem.text for problem in wiring_problems(config, known)]


@given(members=st.integers(1, 7), classes=st.integers(1, 9), batch=st.integers(1, 99))
def test_an_exported_ensemble_has_no_problems(members: int, classes: int, batch: int) -> None:
    assert problems(*exported(members, classes, batch)) == []


@given(data=st.data(), members=st.integers(1, 4))
def test_one_wrong_name_is_one_problem_with_both_names(data: st.DataObject, members: int) -> None:
    config, known = exported(members)
    index = data.draw(st.integers(0, members))
    step = config.ensemble_scheduling.step[index]
    key = data.draw(st.sampled_from(sorted(step.output_map)))
    correct = step.output_map[key]
    step.output_map[key] = "mistyped"
    (message,) = problems(config, known)
    assert_facts(message, f"'{correct}' | 'mistyped'")


@given(data=st.data(), members=st.integers(1, 4))
def test_intermediate_tensor_names_and_step_order_are_free(data: st.DataObject, members: int) -> None:
    config, known = exported(members)
    steps = config.ensemble_scheduling.step
    for step in steps:
        for entries in (step.input_map, step.output_map):
            for key, tensor in list(entries.items()):
                entries[key] = f"between-{tensor}" if tensor.startswith("logits_") else tensor
    order = data.draw(st.permutations(list(steps)))
    del steps[:]
    steps.extend(order)
    assert problems(config, known) == []


@given(data=st.data())
def test_all_problems_are_reported_together(data: st.DataObject) -> None:
    config, known = exported(3)
    edits: dict[str, Callable[[], object]] = {
        "m0 (4)": lambda: setattr(known["m0"], "max_batch_size", 4),
        "step 2 (m1) gives it as FP32 [5], but step 4 (average_x) takes it as FP32 [3]": lambda: (
            known["m1"].output[0].dims.__setitem__(0, 5)
        ),
        "maps input 'pictures'": lambda: config.ensemble_scheduling.step[2].input_map.update({"pictures": "images"}),
        "no step writes its output 'more'": lambda: config.output.add(name="more", data_type=schema.TYPE_FP32, dims=[1]),
        "has instance_group": lambda: config.instance_group.add(count=1),
        "step 5 has no model_name": lambda: config.ensemble_scheduling.step.add(
            input_map={"a": "logits_0"}, output_map={"b": "images_too"}
        ),
    }
    chosen = data.draw(st.sets(st.sampled_from(sorted(edits)), min_size=1))
    for name in sorted(chosen):
        edits[name]()
    messages = "\n".join(problems(config, known))
    assert [name for name in sorted(edits) if (name in messages) != (name in chosen)] == []


def test_steps_of_unknown_models_are_not_checked() -> None:
    config, known = exported(2)
    del known["m0"]
    config.ensemble_scheduling.step[0].input_map["anything"] = "images"
    assert problems(config, known) == []


def test_steps_of_models_without_declared_tensors_are_not_checked() -> None:
    config, known = exported(2)
    known["m0"].ClearField("input")
    known["m0"].ClearField("output")
    assert problems(config, known) == []


def test_an_optional_input_needs_no_map() -> None:
    config, known = exported(2)
    known["m0"].input.add(name="hint", data_type=schema.TYPE_FP32, dims=[1], optional=True)
    assert problems(config, known) == []
    known["m0"].input[1].optional = False
    (message,) = problems(config, known)
    assert_facts(message, "step 1 | m0 | 'hint' | input_map")


def test_a_model_without_batching_matches_if_its_first_dim_is_the_batch() -> None:
    config, known = exported(2)
    known["m0"].max_batch_size = 0
    known["m0"].input[0].dims[:] = [-1, 1, 4, 4]
    known["m0"].output[0].dims[:] = [-1, 3]
    assert problems(config, known) == []
    known["m0"].input[0].dims[:] = [1, 1, 4, 5]
    (message,) = problems(config, known)
    assert_facts(message, "'images' | FP32 [1, 4, 4] | step 1 | m0 | FP32 [1, 1, 4, 5]")


def test_a_tensor_has_one_writer_and_inputs_have_none() -> None:
    config, known = exported(2)
    step = config.ensemble_scheduling.step[1]
    step.output_map["logits"] = "logits_0"
    assert_each(problems(config, known), "step 2 | m1 | 'logits_0' | step 1 | m0 | 'logits_1' | one")
    step.output_map["logits"] = "images"
    assert_facts(problems(config, known)[0], "step 2 | m1 | 'images'")


def test_consequences_of_a_missing_field_are_not_reported() -> None:
    for field in ("input", "output"):
        config, known = exported(2)
        config.ClearField(field)
        assert_each(problems(config, known), f"no {field}")
    for field in ("input_map", "output_map"):
        config, known = exported(2)
        config.ensemble_scheduling.step[1].ClearField(field)
        assert_each(problems(config, known), f"step 2 | m1 | {field}")
    config, known = exported(2)
    config.ensemble_scheduling.step[1].output_map["scores"] = "more"
    assert_each(problems(config, known), "step 2 | m1 | output 'scores' | 'logits'")
    config.input[0].ClearField("dims")
    assert_facts(problems(config, known)[0], "'images' | dims")
    assert len(problems(config, known)) == 2


def test_each_cycle_is_reported_once_without_its_followers() -> None:
    config, known = exported(2)
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
    messages = problems(config, known)
    assert all("cycle" in message for message in messages)
    steps = [re.findall(r"step \d \(\w\)", message) for message in messages]
    assert steps == [["step 4 (a)", "step 6 (c)", "step 5 (b)", "step 4 (a)"], ["step 7 (d)"]]


def test_an_ensemble_without_steps_has_one_problem() -> None:
    config, known = exported(1)
    config.ensemble_scheduling.ClearField("step")
    assert_each(problems(config, known), "no steps")


CUSTOM_LAYOUT = """# Another layout: { not a message
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
def test_field_lines_are_found_in_any_layout(path: tuple[str | tuple[str, int]], line: int | None) -> None:
    text_format.Parse(CUSTOM_LAYOUT, schema.ModelConfig())
    assert FieldLocator(CUSTOM_LAYOUT).line_of(*path) == line


@given(members=st.integers(1, 5))
def test_field_lines_of_an_exported_ensemble(members: int) -> None:
    config, _ = exported(members)
    text = text_format.MessageToString(config)
    lines = text.splitlines()
    for index, step in enumerate(config.ensemble_scheduling.step):
        for key, tensor in step.input_map.items():
            line = FieldLocator(text).line_of("ensemble_scheduling", ("step", index), ("input_map", "key", key), "value")
            assert line is not None
            assert (lines[line - 2].strip(), lines[line - 1].strip()) == (f'key: "{key}"', f'value: "{tensor}"')
    assert (
        FieldLocator(text_format.MessageToString(config, as_one_line=True)).line_of("ensemble_scheduling", ("step", 0), "model_name") == 1
    )
