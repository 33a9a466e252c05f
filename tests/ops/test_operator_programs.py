"""The operator against the interpreter of programs: random programs, every class of batches and kind of lanes, threads, repetition."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.support.operator_programs import BATCHES, LANES, Array, Written, assert_close, computed, model_of, programs, session_of


@given(program=programs(), batch=st.sampled_from(BATCHES), threads=st.sampled_from((1, 2)))
def test_random_programs(program: Written, batch: int, threads: int) -> None:
    images = program.images(batch)
    assert_close(computed(program, images, threads=threads), program.interpreted(images))


@pytest.mark.slow
@settings(max_examples=600)
@given(program=programs(16), batch=st.sampled_from(BATCHES))
def test_many_random_programs(program: Written, batch: int) -> None:
    images = program.images(batch)
    assert_close(computed(program, images), program.interpreted(images))


def example() -> Written:
    """Every instruction, large enough to be split among threads."""
    generator = np.random.default_rng(3)
    program = Written((3, 16, 15))
    stem, deeper, narrow = (
        program.constant((generator.normal(size=size) / 6).astype(np.float32)) for size in ((40, 3, 3, 3), (40, 40, 3, 3), (24, 40, 1, 1))
    )
    bias = program.constant(generator.normal(size=40).astype(np.float32))
    mask = program.constant(generator.random((40, 16, 15)) < 0.3)
    other = program.constant(generator.random((40, 1, 1)) < 0.5)
    half = program.constant(np.float32(0.5).reshape(()))
    same = "strides=1,1 pads=1,1,1,1 dilations=1,1"
    program.lines = [
        f"map in=0 steps=sub:{half},div:{half} act=none support=full",
        f"conv in=1 weight={stem} bias={bias} kernel=3,3 {same} support={mask} residual=- act=relu form=table",
        f"conv in=2 weight={deeper} bias=- kernel=3,3 {same} support={mask}&{other} residual=2 act=relu form=table",
        f"conv in=3 weight={deeper} bias={bias} kernel=3,3 {same} support=full residual=3 act=relu form=dense",
        f"conv in=4 weight={narrow} bias=- kernel=1,1 strides=2,2 pads=0,0,0,0 dilations=1,1 support=full residual=- act=none form=dense",
        "maxpool in=3 kernel=3,3 strides=2,2 pads=1,1,1,1 ceil=0",
        "concat in=5,6",
        "mean in=7",
        f"map in=8 steps=mul:{half} act=sigmoid support=full",
        "mul in=7,9 act=none",
        "avgpool in=10 kernel=2,2 strides=2,2 pads=0,0,0,0 ceil=0 include_pad=0",
        "add in=10,9 act=relu",
        "output in=11",
        "output in=12",
    ]
    program.outputs = 2
    return program


EXAMPLE = example()
IMAGES = EXAMPLE.images(max(BATCHES))


@functools.cache
def interpreted() -> list[Array]:
    return EXAMPLE.interpreted(IMAGES)


@pytest.mark.parametrize("lanes", LANES)
def test_every_batch_class_and_kind_of_lanes(lanes: str) -> None:
    program = EXAMPLE.with_lanes(lanes)
    session = session_of(model_of(program))
    for batch in BATCHES:
        assert_close(session.run(None, {"images": IMAGES[:batch]}), [each[:batch] for each in interpreted()])


@pytest.mark.parametrize("lanes", LANES)
def test_threads_and_repetition_give_the_same_bits(lanes: str) -> None:
    program = EXAMPLE.with_lanes(lanes)
    one, two = (session_of(model_of(program), threads=threads) for threads in (1, 2))
    for batch in (1, 4, 8, 16, 33):
        images = program.images(batch)
        want = one.run(None, {"images": images})
        for session in (one, two, two):
            for got, expected in zip(session.run(None, {"images": images}), want, strict=True):
                np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_concurrent_runs_of_one_session_give_the_same_bits(threads: int) -> None:
    session = session_of(model_of(EXAMPLE), threads=threads)
    batches = [EXAMPLE.images(batch, seed) for seed, batch in enumerate((1, 3, 6, 12, 17, 1, 5, 33))]
    want = [session.run(None, {"images": images}) for images in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            for got, expected in zip(pool.map(lambda images: session.run(None, {"images": images}), batches), want, strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_an_image_has_the_same_bits_wherever_it_is_in_a_batch() -> None:
    session = session_of(model_of(EXAMPLE))
    images = EXAMPLE.images(16)
    forwards, backwards = (session.run(None, {"images": each}) for each in (images, images[::-1].copy()))
    for got, other in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(got, other[::-1])


def test_no_images() -> None:
    assert [each.shape for each in computed(EXAMPLE, EXAMPLE.images(0))] == [(0, 64, 4, 4), (0, 64, 8, 8)]
