"""Hand edits of ensembles and of their averaging models."""

from __future__ import annotations

import shutil

from tritonclient.grpc import model_config_pb2 as schema

from tests.support.hand_edits import Edit, append, both, config, dangling_link, no_digest, parameter, text, without_parameter


def exchange_members(ensemble: schema.ModelConfig) -> None:
    """Exchange the models of the first two steps, whose logits keep their names."""
    first, second = ensemble.ensemble_scheduling.step[:2]
    first.model_name, second.model_name = second.model_name, first.model_name


# Edits of the averaging model of the ensemble `ensemble`, whose members are `alpha` and `beta`.
AVERAGES: dict[str, Edit] = {
    "average-as-exported": lambda folder: None,
    "average-comment": append("# one more line\n"),
    "average-members-removed": without_parameter("members"),
    "average-members-malformed": parameter("members", "alpha, beta"),
    "average-members-empty": parameter("members", "[]"),
    "average-members-of-no-version": parameter("members", '["alpha", "beta"]'),
    "average-members-other-pins": parameter("members", '["alpha@1", "beta@2"]'),
    "average-members-other-order": parameter("members", '["beta@1", "alpha@1"]'),
    "average-members-one-more": parameter("members", '["alpha@1", "beta@1", "gamma@1"]'),
    "average-weights-removed": without_parameter("weights"),
    "average-weights-true": parameter("weights", "[true, 1]"),
    "average-weights-huge": parameter("weights", f"[1{'0' * 400}, 1]"),
    "average-weights-too-few": parameter("weights", "[1]"),
    "average-weights-too-many": parameter("weights", "[1, 1, 1]"),
    "average-weights-0": parameter("weights", "[0, 1]"),
    "average-weights-not-a-number": parameter("weights", "[NaN, 1]"),
    "average-weights-faint": parameter("weights", "[1, 1e-9]"),
    "average-weights-other": parameter("weights", "[1, 99]"),
    "average-weights-nested": parameter("weights", "[" * 99_999),
    "average-average-removed": without_parameter("average"),
    "average-average-unknown": parameter("average", "median"),
    "average-average-other": parameter("average", "logits"),
    "average-all-parameters-removed": both(*(without_parameter(key) for key in ("average", "weights", "members"))),
    "average-digest-removed": no_digest(),
    "average-input-dims-minus-1": config(lambda message: message.input[0].dims.__setitem__(0, -1)),
    "average-second-input-dims-minus-1": config(lambda message: message.input[1].dims.__setitem__(0, -1)),
    "average-input-dims-4": config(lambda message: message.input[0].dims.__setitem__(0, 4)),
    "average-inputs-removed": config(lambda message: message.ClearField("input")),
    "average-input-renamed": config(lambda message: setattr(message.input[1], "name", "logits_2")),
    "average-input-int32": config(lambda message: setattr(message.input[0], "data_type", schema.TYPE_INT32)),
    "average-output-dims-minus-1": config(lambda message: message.output[0].dims.__setitem__(0, -1)),
    "average-measure-dims-minus-1": config(lambda message: message.output[2].dims.__setitem__(0, -1)),
    "average-output-removed": config(lambda message: message.output.pop()),
    "average-output-fp64": config(lambda message: setattr(message.output[0], "data_type", schema.TYPE_FP64)),
    "average-batch-above": config(lambda message: setattr(message, "max_batch_size", 9)),
    "average-batch-below": config(lambda message: setattr(message, "max_batch_size", 4)),
    "average-instances-2": config(lambda message: setattr(message.instance_group[0], "count", 2)),
    "average-threads-2": parameter("intra_op_thread_count", "2"),
}
# Edits of an ensemble of `alpha` and `beta`.
ENSEMBLES: dict[str, Edit] = {
    "ensemble-comment": append("# one more line\n"),
    "ensemble-preprocessing-of-its-own": parameter("preprocessing", '{"version": 1, "resize": "squash", "filter": "bicubic"}'),
    "ensemble-preprocessing-unreadable": parameter("preprocessing", "squash"),
    "ensemble-inflight": text("ensemble_scheduling {", "ensemble_scheduling { max_inflight_requests: 4"),
    "ensemble-inflight-0": text("ensemble_scheduling {", "ensemble_scheduling { max_inflight_requests: 0"),
    "ensemble-model-metrics": append("model_metrics { }\n"),
    "ensemble-version-dangling-link": dangling_link("2"),
    "ensemble-pin-minus-1": config(lambda message: setattr(message.ensemble_scheduling.step[0], "model_version", -1)),
    "ensemble-pin-7": config(lambda message: setattr(message.ensemble_scheduling.step[0], "model_version", 7)),
    "ensemble-pin-of-the-average-minus-1": config(lambda message: setattr(message.ensemble_scheduling.step[2], "model_version", -1)),
    "ensemble-output-removed": config(lambda message: message.output.pop()),
    "ensemble-output-and-map-removed": config(
        lambda message: message.ensemble_scheduling.step[2].output_map.pop(message.output.pop().name)
    ),
    "ensemble-probabilities-removed": config(lambda message: message.output.pop(0)),
    "ensemble-batch-above": config(lambda message: setattr(message, "max_batch_size", 9)),
    "ensemble-batch-below": config(lambda message: setattr(message, "max_batch_size", 4)),
    "ensemble-steps-in-another-order": config(
        lambda message: message.ensemble_scheduling.step.sort(key=lambda step: step.model_name, reverse=True)
    ),
    "ensemble-members-exchanged": config(exchange_members),
    "ensemble-member-twice": config(lambda message: setattr(message.ensemble_scheduling.step[1], "model_name", "alpha")),
    "ensemble-input-dims-minus-1": config(lambda message: message.input[0].dims.__setitem__(1, -1)),
    "ensemble-output-dims-minus-1": config(lambda message: message.output[0].dims.__setitem__(0, -1)),
    "ensemble-labels-missing": config(lambda message: setattr(message.output[0], "label_filename", "nowhere.txt")),
    "ensemble-labels-removed": lambda folder: (folder / "labels.txt").unlink(),
    "ensemble-version-missing": lambda folder: shutil.rmtree(folder / "1"),
    "ensemble-step-of-the-average-removed": config(lambda message: message.ensemble_scheduling.step.pop()),
    "ensemble-other-name": config(lambda message: setattr(message, "name", "other")),
}
