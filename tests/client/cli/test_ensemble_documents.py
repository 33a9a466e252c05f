"""The keys of the JSON output of `ensemble`, which other programs read."""

from __future__ import annotations

import json
from pathlib import Path

from defensemble.cli.actions.ensemble_tables import values_from_applied, values_from_finding, values_from_state
from defensemble.ensembles import Ensembles
from tests.support import tiny


def test_keys_of_ensembles_edits_and_findings(tmp_path: Path) -> None:
    ensembles = Ensembles(tiny.write_repository(tmp_path / "repository"))
    applied = json.loads(json.dumps(values_from_applied(ensembles.weight("ensemble", {"alpha": 2.0}))))
    assert applied["schema"] == "defensemble.applied/1"
    assert set(applied) == {
        *("schema", "id", "ensemble", "changes", "remarks", "servers", "loaded", "unloaded", "left_loaded", "seconds", "dry_run")
    }
    (tmp_path / "repository/ensemble/labels.txt").unlink()
    findings = [json.loads(json.dumps(values_from_finding(finding))) for finding in ensembles.check()]
    assert {key for finding in findings for key in finding} == {"model", "error", "text", "file", "line"}
    state = json.loads(json.dumps(values_from_state(ensembles.show("ensemble")[0])))
    assert state["schema"] == "defensemble.ensemble/1"
    assert set(state) == {
        *("schema", "name", "average", "max_batch_size", "input_shape", "num_classes", "members", "served", "problems", "preprocessing")
    }
    assert set(state["members"][0]) == {
        *("model", "version", "weight", "share", "precision", "mask_aware", "mask_digest", "sha256", "bytes", "arch", "keep"),
        *("record_accuracy", "record_n", "record_data", "exported_accuracy", "exported_n", "exported_images", "problem", "served"),
    }
