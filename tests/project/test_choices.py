"""The choices of options are those of the packages that define them."""

from __future__ import annotations

import pytest

import defensemble_images
import defensemble_repository.names
import defensemble_repository.target
from defensemble._client.model_info import ENSEMBLE_OUTPUTS
from defensemble.cli import choices
from defensemble.load import settings
from defensemble.probes import corruptions
from defensemble.reports import FORMATS
from defensemble_export.members import mask_aware
from defensemble_export.verification import tolerances
from defensemble_images import preprocessing
from defensemble_repository import ensemble
from defensemble_server.runtime import find
from defensemble_training.attacks import presets
from defensemble_training.data import dataset
from defensemble_training.models import masks, spec
from defensemble_training.trainer import compute, recipe


@pytest.mark.parametrize(
    ("choice", "defined"),
    [
        ((*choices.DATASETS, "folder"), dataset.DATASETS),
        (choices.ARCHITECTURES, spec.ARCHITECTURES),
        (choices.PATTERNS, masks.PATTERNS),
        (choices.SAMPLINGS, masks.SAMPLINGS),
        (choices.STEMS, spec.STEMS),
        (choices.DROPS, spec.DROPS),
        (choices.PRESETS, tuple(recipe.PRESETS)),
        (choices.SCHEDULES, recipe.SCHEDULES),
        (choices.WEIGHT_SELECTIONS, recipe.CHOICES),
        (choices.DEVICES, compute.DEVICES),
        (choices.TRAINING_PRECISIONS, tuple(compute.PRECISIONS)),
        (choices.ATTACKS, tuple(presets.ATTACKS)),
        (choices.PAPER_PRESETS, tuple(presets.PAPER_PRESETS)),
        (choices.PRECISIONS, tolerances.PRECISIONS),
        (choices.MASK_AWARE_MODES, mask_aware.MASK_AWARE_MODES),
        (choices.AVERAGES, ensemble.AVERAGES),
        (choices.OUTPUTS, ENSEMBLE_OUTPUTS),
        (choices.PROFILES, defensemble_repository.names.PROFILES),
        (choices.LOAD_ARRIVALS, settings.ARRIVALS),
        (choices.RESIZES, preprocessing.RESIZES),
        (choices.IMAGE_SUFFIXES, defensemble_images.SUFFIXES),
        (choices.CORRUPTIONS, corruptions.CORRUPTIONS),
        (choices.RUNTIMES, find.RUNTIMES),
        (choices.REPORT_FORMATS, FORMATS),
        (choices.CHECK_RUNTIMES, tuple(defensemble_repository.target.TARGETS)),
    ],
)
def test_choices_equal_those_of_the_package(choice: tuple[str, ...], defined: tuple[str, ...]) -> None:
    assert choice == tuple(defined)
