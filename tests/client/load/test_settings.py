"""The settings of load tests."""

from __future__ import annotations

import math
from typing import Any

import pytest

from defensemble import InputError
from defensemble.load import LoadSettings, Slo
from defensemble.load.settings import batch_sizes_from_text, slo_from_text
from tests.support.facts import raises


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"callers": (1,), "rates": (1.0,)}, "callers | rates"),
        ({"callers": (0,)}, "callers | 1 | 0"),
        ({"callers": (5000,)}, "4096 | 5000"),
        ({"callers": 3}, "callers | 3"),
        ({"rates": (0.0,)}, "0.001 | 0.0"),
        ({"rates": (math.nan,)}, "nan"),
        ({"rates": (1e6,), "step_s": 100}, "100 | 50,000,000"),
        ({"arrivals": "bursts"}, "poisson | constant | bursts"),
        ({"step_s": 0}, "step_s | 0"),
        ({"warm_up_s": -1}, "warm_up_s | -1"),
        ({"ramp_s": math.inf}, "ramp_s | inf"),
        ({"batch_sizes": {}}, "batch_sizes"),
        ({"batch_sizes": {1: 0.0}}, "batch size 1"),
        ({"batch_sizes": {0: 1.0}}, "0"),
        ({"slo": Slo(1.0, 5.0)}, "0.99"),
        ({"slo": Slo(0.9, math.nan)}, "0.99"),
        ({"timeout_s": 0}, "timeout_s | 0"),
        ({"max_in_flight": 0}, "max_in_flight | 0"),
        ({"processes": 10_000}, "processes | 10000"),
        ({"seed": -1}, "seed | -1"),
        ({"outputs": "probabilities"}, "outputs | probabilities"),
        ({"model": ""}, "model"),
    ],
)
def test_invalid_values(values: dict[str, Any], facts: str) -> None:
    with raises(InputError, facts):
        LoadSettings(**values)


def test_objectives_and_batch_sizes_from_texts() -> None:
    assert slo_from_text("p99=50ms") == Slo(0.99, 50.0)
    assert slo_from_text("p99.9=0.2s") == Slo(0.999, 200.0)
    assert str(slo_from_text("p99.9=0.2s")) == "p99.9=200ms"
    for text in ("p0=5ms", "p100=5ms", "p99=50", "p99=0ms", "99=50ms", "p99<50ms", ""):
        with raises(InputError, "p99=50ms"):
            slo_from_text(text)
    assert batch_sizes_from_text("16") == {16: 1.0}
    assert batch_sizes_from_text("1:0.8, 16:0.2") == {1: 0.8, 16: 0.2}
    for text in ("", "1,2", "1:", "a", "1:0.5,1:0.5", "-1"):
        with pytest.raises(InputError):
            batch_sizes_from_text(text)
    assert LoadSettings(batch_sizes={16: 1, 1: 3}).batch_shares == ((1, 0.75), (16, 0.25))
