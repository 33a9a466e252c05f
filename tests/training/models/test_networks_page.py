"""docs/reference/networks.md: its tables against the networks, its blocks run."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
import torch

from defensemble_training import Drop, ModelSpec, build
from defensemble_training.models.spec import ARCHITECTURES, DROPS
from tests.support.checkout import ROOT
from tests.support.facts import raises
from tests.support.placements import PLACEMENTS, SETTINGS

PAGE = (ROOT / "docs/reference/networks.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def table(first_column: str) -> list[list[str]]:
    """Return the cells of the table whose header starts with a column name."""
    _, rows = PAGE.split(f"| {first_column} |", 1)
    lines = rows.split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def outline(spec: ModelSpec) -> torch.nn.Module:
    with torch.device("meta"):
        return build(spec)


def test_table_of_networks() -> None:
    rows = table("`arch` | what it is")
    assert [row[0].strip("`") for row in rows] == list(ARCHITECTURES)
    for arch, _, parameters, _, width in rows:
        module = outline(ModelSpec(arch.strip("`"), 0.1, (0, 1)))
        assert f"{sum(parameter.numel() for parameter in module.parameters()):,}" == parameters
        factor = int(width.removeprefix("a multiple of ")) if width != "any" else 1
        outline(ModelSpec(arch.strip("`"), 0.5, (0, 1), width=factor))
        if factor > 1:
            with raises(ValueError, f"multiple of {factor}"):
                ModelSpec(arch.strip("`"), 0.5, (0, 1), width=factor // 2)


def test_table_of_masks() -> None:
    documented = {(row[0].strip("`"), int(row[1])): (int(row[2]), row[3]) for row in table("`arch` | block")}
    expected = {}
    for arch, blocks in PLACEMENTS.items():  # test_placements.py compares these with the networks
        for block, masks in blocks.items():
            different = ["x".join(map(str, shape)) for shape in dict.fromkeys(masks.values())]
            expected[arch, block] = len(masks), ", ".join(different) if len(different) < 3 else f"{different[0]} to {different[-1]}"
    assert documented == expected


def test_settings_of_the_paper() -> None:
    text = " ".join(PAGE.split("The paper's settings are", 1)[1].split("`blocks` takes any set", 1)[0].split())
    counts = {"ResNet-18": "resnet18", "ResNet-50": "resnet50", "SENet-18": "senet18", "DenseNet-121": "densenet121"}
    counts |= {"VGG-19": "vgg19", "WRN-32-4": "wrn32_4"}
    bottom = {arch: count for arch, blocks, count in SETTINGS if blocks[0] == 0}
    assert {counts[name]: int(count) for name, count in re.findall(r"([\w-]+) \((\d+)(?: masks)?\)", text) if name in counts} == bottom
    assert "`(3, 4)` (10)" in text


def test_table_of_baselines() -> None:
    assert [row[0].strip("`") for row in table("`kind`")] == list(DROPS)
    assert Drop("drop_block", keep=0.9, blocks=(3, 4), block_size=3) == Drop("drop_block")


@pytest.mark.parametrize("block", BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about its own code
def test_code_blocks_run(block: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "docs/reference/networks.md", "exec"), {"__name__": "networks_page"})
    if "defective" in block:
        assert printed.getvalue().splitlines() == [
            "entry.1.defect.mask (16, 28, 28)",
            "depthwise.defect.mask (16, 26, 26)",
            "['entry.1.defect.mask', 'depthwise.defect.mask']",
        ]


def test_page_has_three_code_blocks() -> None:
    assert len(BLOCKS) == 3
