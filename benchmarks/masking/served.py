"""Five members behind our Triton, as dense and as mask-aware files, for the same callers in turn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.common.figures import round_ratios, spread
from benchmarks.common.forms import predict_with
from benchmarks.common.servers import start_server, write_ensemble_repository
from benchmarks.common.timing import CallSetting, time_form
from benchmarks.masking.forms import Images
from defensemble import Client
from defensemble_export import member_from_onnx

SETTING = CallSetting(8, 16)
_WARM_S = 1.0


def measure_served(
    pairs: Sequence[tuple[onnx.ModelProto, onnx.ModelProto]], images: Images, folder: Path, *, rounds: int, seconds: float
) -> dict[str, Any]:
    """Serve five dense and five mask-aware members, one server at a time, and return images per second and their ratio by rounds.

    Args:
        pairs: The plain and the mask-aware graph of each member.
        images: At least as many images as the callers use together.
        folder: A folder for the repositories.
        rounds: Rounds; in each, both ensembles are served and called in turn.
        seconds: Seconds of each form in a round.
    """
    repositories = {
        name: _repository(folder / name, [pair[number] for pair in pairs]) for number, name in enumerate(("dense", "mask_aware"))
    }
    batches = np.ascontiguousarray(images[: SETTING.callers * SETTING.batch]).reshape(SETTING.callers, SETTING.batch, *images.shape[1:])
    rates: dict[str, list[float]] = {name: [] for name in repositories}
    answers = {}
    for number in range(rounds):
        for name in list(repositories)[:: 1 if number % 2 else -1]:
            with start_server(repositories[name]) as (server, _), Client(server.grpc_url) as client:
                answers[name] = client.predict(images[: SETTING.batch]).probabilities
                rates[name].append(time_form(predict_with(client), batches, warm_s=_WARM_S, seconds=seconds).images_per_s)
    return {
        "setting": SETTING.title,
        "images_per_s": {name: spread(values) for name, values in rates.items()},
        "speed": spread(round_ratios(rates["mask_aware"], rates["dense"])),
        "largest_difference": float(np.abs(answers["dense"] - answers["mask_aware"]).max()),
    }


def _repository(repository: Path, models: Sequence[onnx.ModelProto]) -> Path:
    members = []
    for number, model in enumerate(models):
        path = repository.parent / f"{repository.name}_{number}.onnx"
        onnx.save(model, path)
        members.append(member_from_onnx(path, f"member{number}"))
    return write_ensemble_repository(repository, members, max_batch_size=64)
