"""The values that options accept, without the packages that define them.

Importing torch or onnx takes seconds; a wrong choice is refused before that. `tests/project/test_choices.py` compares each tuple with
that of its package.
"""

from __future__ import annotations

# Data and networks: defensemble_training.
DATASETS = ("digits", "mnist", "cifar10", "tiny-imagenet", "imagenet", "stylized-imagenet")
ARCHITECTURES = ("resnet18", "resnet50", "densenet121", "senet18", "vgg19", "wrn32_4")
PATTERNS = ("neuron", "channel", "shared")
SAMPLINGS = ("bernoulli", "exact")
STEMS = ("cifar", "imagenet")
DROPS = ("spatial_dropout", "drop_block")

# Training: defensemble_training.
PRESETS = ("fast", "paper")
SCHEDULES = ("one-cycle", "steps")
WEIGHT_SELECTIONS = ("last", "best")
DEVICES = ("auto", "cpu", "gpu")
TRAINING_PRECISIONS = ("fp32", "bf16")
ATTACKS = (
    "table2-fgsm",
    "table2-pgd",
    "table3-pgd",
    "table4-pgd",
    "fgsm8",
    "fgsm16",
    "fgsm32",
    "pgd16",
    "pgd2-16",
    "pgd32",
    "cw",
    "cw-resnet18",
    "mnist-pgd",
    "table12-fgsm1",
    "table12-fgsm2",
    "table12-fgsm4",
    "table12-pgd2",
    "table12-pgd4",
    "table12-pgd8",
    "mifgsm16",
    "mifgsm32",
    "mifgsm32-tiny-imagenet",
    "mifgsm64-tiny-imagenet",
    "adversarial-training",
    "adversarial-training-3",
)

_PAPER_TABLES = ("table2", "table3", "table4", "table5", "table14", "table15", "table16", "table17", "table18", "table9", "table12")
PAPER_PRESETS = tuple(
    f"paper-{name}" for name in (*_PAPER_TABLES, "mifgsm", "mifgsm-tiny-imagenet", *ATTACKS) if not name.startswith("adversarial-training")
)

# Models: defensemble_export, defensemble_repository, defensemble_images and the client.
PRECISIONS = ("fp32", "fp16", "int8")
MASK_AWARE_MODES = ("auto", "on", "off")
AVERAGES = ("probabilities", "logits")
OUTPUTS = ("probabilities", "member_probabilities", "entropy", "mutual_information")
PROFILES = ("cpu", "gpu", "gpu-ort-tensorrt", "gpu-tensorrt")
COMPRESSIONS = ("gzip",)
RESIZES = ("crop", "squash")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

# Servers: defensemble_server; the Tritons that `ensemble check` knows: defensemble_repository.
RUNTIMES = ("embedded", "path", "docker")
CHECK_RUNTIMES = ("embedded", "docker")

LOG_LEVELS = ("debug", "info", "warning", "error")
SHELLS = ("bash", "zsh", "fish")

# Load tests and probes: the client.
LOAD_ARRIVALS = ("poisson", "constant")
NOISE_KINDS = ("gaussian", "uniform", "salt-and-pepper")
PROBE_INPUTS = ("float32", "8bit")
PROBE_ANSWERS = ("probabilities", "labels", "top-1")
REPORT_FORMATS = ("html", "md", "csv")
NORMS = ("l2", "linf")
CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
