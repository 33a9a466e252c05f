"""An import into a repository that is being served, and how the server loads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from defensemble import Client
from defensemble_server import ServeOptions, serve
from tests.support import tiny
from tests.support.command_line import succeed
from tests.support.facts import assert_facts


def test_a_server_loads_new_members_on_reload(tmp_path: Path) -> None:
    tiny.write_repository(tmp_path / "model_repository", {"alpha": 1})
    (tmp_path / "beta.onnx").write_bytes(tiny.linear_onnx(2))
    images = tiny.images(4)
    alpha, beta = (tiny.softmax(tiny.logits(seed, images)) for seed in (1, 2))
    with serve(tmp_path / "model_repository", ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)) as server:
        (tmp_path / "labels.txt").write_text("".join(f"{name}\n" for name in tiny.CLASSES))
        command = ("import-onnx", "beta.onnx", "--name", "beta", "--labels", "labels.txt", "--max-batch-size", "8", "--replace")
        output = succeed(*command, cwd=tmp_path)
        assert "serve it: " not in output
        (line,) = [line for line in output.splitlines() if line.startswith(f"{server.http_url} serves the old files")]
        with Client(server.grpc_url) as client:
            assert np.allclose(client.predict(images).probabilities, alpha, atol=1e-5), "before the reload"
        output = succeed("ensemble", "reload", *line.split(" ensemble reload ")[1].split(), cwd=tmp_path)
        assert_facts(output, "adds | beta@1 | 50.0 %")
        with Client(server.grpc_url) as client:
            assert np.allclose(client.predict(images).probabilities, (alpha + beta) / 2, atol=1e-5)
        assert "removes beta@1" in succeed("ensemble", "rollback", cwd=tmp_path)
        with Client(server.grpc_url) as client:
            assert np.allclose(client.predict(images).probabilities, alpha, atol=1e-5)
