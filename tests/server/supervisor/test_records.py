"""Readiness, and the metrics as Prometheus reads them."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import Counter
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from defensemble_server.supervisor.connection import InferRequest
from defensemble_server.supervisor.records import Outages, TargetRecord, metrics_text, readiness_problems
from defensemble_server.supervisor.targets import Problem, Target

NOTHING = InferRequest("", b"", 0)
ODD = 'odd"näme\\of\n'


def records() -> dict[str, TargetRecord]:
    member, ensemble = TargetRecord(Target("alpha", 1, "digest", NOTHING)), TargetRecord(Target(ODD, None, "digest", NOTHING))
    for record in (member, ensemble):
        record.note("correct", 0.25)
    return {record.target.label: record for record in (member, ensemble)}


def metrics(found: dict[str, TargetRecord], outages: Outages) -> str:
    return metrics_text(found, outages, Counter(done=2), is_ready=True, interval_s=1.0, looped_at=5.0)


def test_the_metrics_are_read_back() -> None:
    found, outages = records(), Outages()
    outages.end()
    outages.begin("died")
    outages.begin("not_restarted")
    outages.end()
    found["alpha@1"].note("nan", 0.5)
    found["alpha@1"].fail(Problem("nan", "not finite"), 1.0)
    families = {family.name: family for family in text_string_to_metric_families(metrics(found, outages))}
    samples = {(sample.name, *sorted(sample.labels.items())): sample.value for family in families.values() for sample in family.samples}
    prefix = "defensemble_supervisor_"
    assert samples[f"{prefix}checks_total", ("model", "alpha"), ("result", "nan"), ("version", "1")] == 1
    assert samples[f"{prefix}check_latency_seconds", ("model", ODD), ("version", "")] == 0.25
    assert samples[f"{prefix}outages_total", ("kind", "died")] == 1
    assert samples[f"{prefix}outages_total", ("kind", "hung")] == 0, "a counter without its first sample has no increase"
    assert samples[f"{prefix}repairs_total", ("result", "done")] == 2
    assert samples[f"{prefix}check_failing", ("model", "alpha"), ("version", "1")] == 1
    assert (samples[f"{prefix}server_up",], samples[f"{prefix}ready",], samples[f"{prefix}interval_seconds",]) == (1, 1, 1)
    assert 0 <= samples[f"{prefix}downtime_seconds_total",] < 5


def test_promtool_accepts_the_metrics() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian's package prometheus) is not installed")
    done = subprocess.run([promtool, "check", "metrics"], input=metrics(records(), Outages()), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ready_means_that_every_ensemble_was_correct_a_moment_ago() -> None:
    found = records()
    ready: Any = (found, [ODD], {}, None, 3.0)
    assert readiness_problems(*ready) == []
    found["alpha@1"].fail(Problem("nan", "not finite"), 1.0)
    assert readiness_problems(*ready) == [], "a member is no ensemble"
    assert len(readiness_problems(found, [], {}, None, 3.0)) == 1, "without ensembles, members count"
    assert len(readiness_problems(found, [ODD, "other"], {"other": "no members"}, None, 3.0)) == 1
    assert "died" in readiness_problems(found, [ODD], {}, "died", 3.0)[0]
    ensemble = found[ODD]
    ensemble.correct_at = time.time() - 4
    assert "4.0 s" in readiness_problems(*ready)[0]
    ensemble.fail(Problem("wrong", "differs by 2"), 1.0)
    assert "differs by 2" in readiness_problems(*ready)[0]
    assert len(readiness_problems({}, [], {}, None, 3.0)) == 1
