"""An export into a repository that is being served: what it says, and how the server takes it up."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from defensemble import Client
from defensemble_server import ServeOptions, serve
from tests.support import tiny
from tests.support.command_line import succeed
from tests.support.facts import assert_facts


def test_a_server_takes_up_an_export_when_it_is_told_to(tmp_path: Path) -> None:
    tiny.write_repository(tmp_path / "model_repository", {"alpha": 1})
    (tmp_path / "beta.onnx").write_bytes(tiny.linear_onnx(2))
    images = tiny.images(4)
    alpha, beta = (tiny.softmax(tiny.logits(seed, images)) for seed in (1, 2))
    with serve(tmp_path / "model_repository", ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)) as server:
        (tmp_path / "labels.txt").write_text("".join(f"{name}\n" for name in tiny.CLASSES))
        export = ("export", "--from-onnx", "beta.onnx", "--as", "beta", "--labels", "labels.txt", "--max-batch-size", "8", "--replace")
        told = succeed(*export, cwd=tmp_path)
        assert "serve it: " not in told
        (line,) = [line for line in told.splitlines() if line.startswith(f"{server.http_url} serves what was there before")]
        with Client(server.grpc_url) as client:
            assert np.allclose(client.predict(images).probabilities, alpha, atol=1e-5), "until it is told"
        told = succeed("ensemble", "reload", *line.split(" ensemble reload ")[1].split(), cwd=tmp_path)
        assert_facts(told, "adds | beta@1 | 50.0 %")
        with Client(server.grpc_url) as client:
            assert np.allclose(client.predict(images).probabilities, (alpha + beta) / 2, atol=1e-5)
        assert "removes beta@1" in succeed("ensemble", "rollback", cwd=tmp_path)
        with Client(server.grpc_url) as client:
            assert np.allclose(client.predict(images).probabilities, alpha, atol=1e-5)
