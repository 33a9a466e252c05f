"""Converters on generated networks, with bodies, misleading names and every notation of axes, compared with ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from onnx import TensorProto

from defensemble_export import ExportError, fused_onnx
from defensemble_export.foreign.convert import onnx_from_foreign
from defensemble_export.graphs.int8 import int8_from_onnx
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_server.doctor.cpu_int8 import int8_check
from tests.support import tiny
from tests.support.foreign_models import write
from tests.support.generated_graphs import SHAPE, Array, Recipe, graph_from_recipe, recipes

IMAGES = np.random.default_rng(0).random((8, *SHAPE), np.float32)
NAMINGS = st.integers(0, 10_000)


def few_or_many(few: int, many: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a property on `few` examples, and on `many` in the slow tests."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        def run(count: int) -> None:
            settings(max_examples=count, suppress_health_check=list(HealthCheck))(given(**strategies)(test))()

        return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])(run)

    return decorate


def answer(model: onnx.ModelProto | bytes, images: Array, output: str = "logits", *, optimised: bool = True) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns about the extents in the recipes
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (values,) = session.run([output], {"images": images})
    assert isinstance(values, np.ndarray)
    return values


def reference(model: onnx.ModelProto, images: Array = IMAGES) -> Array:
    """Return the logits of a network as it was generated; reject the example if they overflow, as several loops in a row can."""
    values = answer(model, images)
    assume(np.isfinite(values).all())
    return values


def int8_answers(model: onnx.ModelProto, images: Array) -> list[Array]:
    """Return the outputs as the graph is written, and those of optimised kernels, unless they saturate on this processor."""
    written, optimised = (answer(model, images, optimised=optimised) for optimised in (False, True))
    return [written, optimised] if int8_check()[1] == "PASS" else [written]


@few_or_many(8, 400, members=st.lists(st.tuples(recipes(), NAMINGS), min_size=2, max_size=3), again=st.booleans(), logits=st.booleans())
def test_a_fused_graph_matches_numpy(members: list[tuple[Recipe, int]], again: bool, logits: bool) -> None:
    if again:  # shared computations run once
        members[1] = (members[0][0], members[1][1])
    weights = np.arange(1.0, len(members) + 1) / np.arange(1.0, len(members) + 1).sum()
    ensemble_members = tuple(Member(f"m{index}", 1, weight) for index, weight in enumerate(weights))
    fused = fused_onnx(
        [graph_from_recipe(*member) for member in members], Ensemble("e", ensemble_members, "logits" if logits else "probabilities")
    )
    onnx.checker.check_model(onnx.load_model_from_string(fused), full_check=True)
    each = np.stack([reference(graph_from_recipe(recipe)).astype(np.float64) for recipe, _ in members])
    tolerance = 1e-5 * max(1.0, float(np.abs(each).max()))
    softmax = tiny.softmax(each)
    expected = tiny.softmax(np.tensordot(weights, each, 1)) if logits else np.tensordot(weights, softmax, 1)
    assert np.abs(answer(fused, IMAGES, "member_probabilities") - softmax.transpose(1, 0, 2)).max() <= tolerance
    assert np.abs(answer(fused, IMAGES, "probabilities") - expected).max() <= tolerance


def outcome(model: onnx.ModelProto, float_nodes: list[str] | None) -> onnx.ModelProto | str:
    """Return the network in int8, or the reason why it cannot be quantised."""
    try:
        return int8_from_onnx(model, IMAGES, float_nodes=float_nodes)
    except ExportError as error:
        return str(error)


@few_or_many(8, 400, recipe=recipes(), naming=NAMINGS, everything=st.booleans())
def test_int8_does_not_depend_on_names_and_is_close_to_float32(recipe: Recipe, naming: int, everything: bool) -> None:
    plain, odd = graph_from_recipe(recipe), graph_from_recipe(recipe, naming)
    right = reference(plain)
    named, quantised = (outcome(model, [] if everything else None) for model in (plain, odd))
    if isinstance(named, str) or isinstance(quantised, str):
        assert named == quantised
        assert "quantise" in str(named)
        return
    onnx.checker.check_model(quantised, full_check=True)
    answers = int8_answers(quantised, IMAGES)
    np.testing.assert_array_equal(answers[0], answer(named, IMAGES, optimised=False))
    for got in answers:
        assert np.abs(got - right).max() <= 0.25 * np.abs(right).max() + 0.01
    masks = [
        {tensor.name: tensor.raw_data for tensor in model.graph.initializer if tensor.data_type == TensorProto.BOOL}
        for model in (odd, quantised)
    ]
    assert masks[0] == masks[1], "masks keep their names, and other constants are none"


@few_or_many(4, 200, recipe=recipes(), naming=NAMINGS)
def test_a_normalisation_is_prepended_for_every_reader_of_the_images(recipe: Recipe, naming: int) -> None:
    named = graph_from_recipe(replace(recipe, axes=("N", "N", "N")), naming)
    with tempfile.TemporaryDirectory() as folder:
        imported = onnx_from_foreign(write(Path(folder), named), mean=[0.5, 0.25, 0.5], std=[0.25])
    mean = np.array([0.5, 0.25, 0.5], np.float32).reshape(3, 1, 1)
    expected = reference(graph_from_recipe(recipe), (IMAGES - mean) / np.float32(0.25))
    assert np.abs(answer(imported, IMAGES) - expected).max() <= 1e-4 * max(1.0, float(np.abs(expected).max()))
