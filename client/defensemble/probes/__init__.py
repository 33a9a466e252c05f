"""Robustness probes: measure classifiers from outside, without access to their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .._image_files import ReadOptions as ReadOptions
    from .adaptive import Adaptive as Adaptive
    from .base import (
        Condition as Condition,
        LabelledImages as LabelledImages,
        OnProgress as OnProgress,
        PerturbationProbe as PerturbationProbe,
        Probe as Probe,
        ProbeImage as ProbeImage,
        QueryAttack as QueryAttack,
    )
    from .comparing import compare as compare
    from .corruptions import Corruptions as Corruptions
    from .cue_conflict import write_cue_conflict as write_cue_conflict
    from .data import ProbeData as ProbeData, load_probe_data as load_probe_data
    from .folders import Folders as Folders, ImageFolder as ImageFolder, LoadFolder as LoadFolder, load_folders as load_folders
    from .foolbox_attacks import Boundary as Boundary, HopSkipJump as HopSkipJump
    from .measuring import measure as measure
    from .merging import merge as merge
    from .noise import PAPER_SIGMAS as PAPER_SIGMAS, Noise as Noise
    from .options import Preview as Preview, Progress as Progress, RunOptions as RunOptions
    from .outcome import (
        AttackOutcome as AttackOutcome,
        Check as Check,
        ProbeOutcome as ProbeOutcome,
        QueryCounts as QueryCounts,
        TargetOutcome as TargetOutcome,
    )
    from .outcome_reader import outcome_from_json as outcome_from_json, read_outcome as read_outcome
    from .shuffle import Shuffle as Shuffle
    from .square import Square as Square
    from .suite import worst_case as worst_case
    from .targets import (
        FunctionTarget as FunctionTarget,
        Response as Response,
        ServedTarget as ServedTarget,
        Target as Target,
        served_targets as served_targets,
    )
    from .transfer import Transfer as Transfer

_NAMES_BY_MODULE = {
    "adaptive": ("Adaptive",),
    "base": ("Condition", "LabelledImages", "OnProgress", "PerturbationProbe", "Probe", "ProbeImage", "QueryAttack"),
    "comparing": ("compare",),
    "corruptions": ("Corruptions",),
    "cue_conflict": ("write_cue_conflict",),
    "data": ("ProbeData", "ReadOptions", "load_probe_data"),
    "folders": ("Folders", "ImageFolder", "LoadFolder", "load_folders"),
    "foolbox_attacks": ("Boundary", "HopSkipJump"),
    "measuring": ("measure",),
    "merging": ("merge",),
    "noise": ("PAPER_SIGMAS", "Noise"),
    "options": ("Preview", "Progress", "RunOptions"),
    "outcome": ("AttackOutcome", "Check", "ProbeOutcome", "QueryCounts", "TargetOutcome"),
    "outcome_reader": ("outcome_from_json", "read_outcome"),
    "shuffle": ("Shuffle",),
    "square": ("Square",),
    "suite": ("worst_case",),
    "targets": ("FunctionTarget", "Response", "ServedTarget", "Target", "served_targets"),
    "transfer": ("Transfer",),
}
__all__, __getattr__ = lazy_names(__name__, _NAMES_BY_MODULE)
