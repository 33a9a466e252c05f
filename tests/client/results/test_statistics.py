from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from defensemble import InputError, Rate, rate
from defensemble.results.statistics import auroc, bootstrap_median, difference_interval, mcnemar, rejection_curve

COUNTS = st.integers(0, 3000)
SCORES = st.lists(st.integers(0, 6), min_size=1, max_size=25)


@given(COUNTS, COUNTS)
def test_mcnemar_is_the_binomial_test(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    expected = 1.0 if n == 0 else stats.binomtest(only_a, n).pvalue
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a)


def test_mcnemar_of_many_pairs_may_underflow() -> None:
    assert mcnemar(0, 20_000) == 0.0
    assert mcnemar(10_000, 10_000) == 1.0
    assert mcnemar(9_900, 10_100) == pytest.approx(stats.binomtest(9_900, 20_000).pvalue, rel=1e-9)


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(InputError, match="-1"):
        mcnemar(-1, 4)


def test_the_bootstrap_of_a_median_is_close_to_scipy() -> None:
    values = np.random.default_rng(4).lognormal(size=101)
    estimate = bootstrap_median(values, seed=0)
    assert estimate is not None
    expected = stats.bootstrap(
        (values,), np.median, n_resamples=2000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert estimate.value == np.median(values)
    assert estimate.n == 101
    # Both are order statistics of the sample near the median, and vary with the seed by a few ranks.
    ranks = np.searchsorted(np.sort(values), [estimate.low, expected.low, estimate.high, expected.high])
    assert abs(ranks[0] - ranks[1]) <= 3
    assert abs(ranks[2] - ranks[3]) <= 3


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.inf)), min_size=1, max_size=20), st.integers(0, 5))
@settings(max_examples=30)
def test_the_bootstrap_is_seeded_and_encloses_the_median_of_infinite_values_too(numbers: list[float], seed: int) -> None:
    values = np.array(numbers)
    estimate = bootstrap_median(values, seed, resamples=200)
    assert estimate == bootstrap_median(values, seed, resamples=200)
    assert estimate is not None
    assert estimate.low <= estimate.value <= estimate.high
    assert {estimate.low, estimate.high} <= {*numbers, *((a + b) / 2 for a in numbers for b in numbers)}


def test_infinite_bounds_become_null_and_nan_is_refused() -> None:
    estimate = bootstrap_median(np.array([1.0, np.inf, np.inf]), 0)
    assert estimate is not None
    assert estimate.json() == {"value": None, "low": 1.0, "high": None, "n": 3}
    assert bootstrap_median(np.zeros(0), 0) is None
    with pytest.raises(InputError, match="1 of 2"):
        bootstrap_median(np.array([np.nan, 1]), 0)


def test_chunks_do_not_change_the_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_median(values, 1)
    monkeypatch.setattr("defensemble.results.statistics._CHUNK", 999)
    assert bootstrap_median(values, 1) == whole


@given(SCORES, SCORES)
def test_auroc_equals_scikit_learn_and_delong_of_independent_images(clean: list[int], perturbed: list[int]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    n, m = len(clean), len(perturbed)
    gaps = np.full(m, np.nan), np.full(n, np.nan)
    found = auroc(np.concatenate([clean, gaps[0]]), np.concatenate([gaps[1], perturbed]))
    assert found is not None
    assert found.value == pytest.approx(metrics.roc_auc_score([0] * n + [1] * m, clean + perturbed), abs=1e-12)
    assert (found.n_clean, found.n_perturbed) == (n, m)
    wins = np.array([[1.0 if b > a else 0.5 if a == b else 0.0 for a in clean] for b in perturbed])
    variance = 0.0 if min(n, m) < 2 else float(np.var(wins.mean(1), ddof=1) / m + np.var(wins.mean(0), ddof=1) / n)
    if variance < 1e-15:
        assert found.low is found.high is None
    else:
        half = stats.norm.ppf(0.975) * math.sqrt(variance)
        assert found.low == pytest.approx(max(0, found.value - half), abs=1e-9)
        assert found.high == pytest.approx(min(1, found.value + half), abs=1e-9)


def test_the_interval_of_auroc_accounts_for_the_dependence_of_the_two_scores_of_an_image() -> None:
    rng = np.random.default_rng(0)
    clean = rng.normal(size=150)
    perturbed = clean + rng.normal(0.3, 0.4, size=150)
    found = auroc(clean, perturbed)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    resampled = []
    for _ in range(500):
        chosen = rng.integers(150, size=150)
        resampled.append((perturbed[chosen][:, None] > clean[chosen]).mean())
    half = 1.96 * float(np.std(resampled))
    assert found.high - found.value == pytest.approx(half, rel=0.12)
    shuffled = auroc(clean, rng.permutation(perturbed))
    assert shuffled is not None
    assert shuffled.high is not None
    assert shuffled.value == pytest.approx(found.value)
    assert shuffled.high - shuffled.value > 2 * half  # the same scores, no longer paired


def test_auroc_of_a_perfect_detector_has_no_interval_and_none_without_images() -> None:
    perfect = auroc(np.array([0.1, 0.2]), np.array([0.3, 0.4]))
    assert perfect is not None
    assert perfect.json() == {"value": 1.0, "low": None, "high": None, "n_clean": 2, "n_perturbed": 2}
    assert auroc(np.array([0.1]), np.array([np.nan])) is None


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30), st.integers(1, 25))
def test_the_rejection_curve_has_the_expected_accuracy_of_random_orders(images: list[tuple[int, bool]], points: int) -> None:
    uncertainty, correct = np.array([float(value) for value, _ in images]), np.array([right for _, right in images])
    curve = rejection_curve(uncertainty, correct, points)
    assert curve[0] == pytest.approx((0.0, correct.mean()))
    assert len(curve) == len({share for share, _ in curve}) <= points
    for share, accuracy in curve:
        kept = round((1 - share) * len(images))
        limit = sorted(uncertainty)[kept - 1]
        sure, tied = uncertainty < limit, uncertainty == limit
        expected = correct[sure].sum() + (kept - sure.sum()) * correct[tied].mean()
        assert accuracy == pytest.approx(expected / kept)


def test_a_rejection_curve_ignores_images_without_a_value() -> None:
    assert rejection_curve(np.array([np.nan, 0.5, 0.1]), np.array([False, False, True]), 2) == [(0.0, 0.5), (0.5, 1.0)]
    assert rejection_curve(np.array([np.nan]), np.array([True])) == []


def test_the_interval_of_a_difference_matches_newcombes_paper() -> None:
    def of(successes: int, n: int) -> Rate:
        return rate(np.arange(n) < successes)

    # Table II of the paper, method 10, with the first proportion minus the second.
    for first, second, low, high in [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 10), 0.6075, 1),
    ]:
        assert difference_interval(of(*second), of(*first)) == pytest.approx((low, high), abs=1e-4)
    assert difference_interval(of(0, 0), of(1, 2)) is None


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_interval_of_a_difference_changes_sign_with_the_order(a: int, b: int) -> None:
    first, second = rate(np.arange(40) < a), rate(np.arange(40) < b)
    forward, backward = difference_interval(first, second), difference_interval(second, first)
    assert forward is not None
    assert backward is not None
    assert forward == pytest.approx((-backward[1], -backward[0]))
    assert forward[0] - 1e-12 <= (b - a) / 40 <= forward[1] + 1e-12
