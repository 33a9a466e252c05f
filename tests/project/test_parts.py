"""The parts of the slow tests that CI runs one by one, and the number of examples that comes with what is chosen."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import part_from_text
from tests.support.checkout import ROOT

TESTS = """
import pytest
from hypothesis import settings

def test_fast():
    assert settings.default.max_examples == {examples}

@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_slow(number):
    assert settings.default.max_examples == {examples}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of six tests with our settings of pytest and our `conftest.py`."""
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    return tmp_path


def passed(project: Path, *options: str, examples: int) -> list[str]:
    """Run its tests; returns the names of those that passed, where none failed."""
    (project / "test_some.py").write_text(TESTS.format(examples=examples))
    # Without the plugins that it does not need: they take most of the time.
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin", *options, "test_some.py"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"::(\S+) PASSED", done.stdout)


def test_parts_are_the_slow_tests_each_once_and_with_more_examples(project: Path) -> None:
    parts = [passed(project, "-m", "slow", "--part", f"{part}/2", examples=300) for part in (1, 2)]
    assert parts == [["test_slow[0]", "test_slow[2]", "test_slow[4]"], ["test_slow[1]", "test_slow[3]"]]


def test_without_slow_tests_there_are_few_examples(project: Path) -> None:
    assert passed(project, examples=50) == ["test_fast"]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "x/y", "1/0"])
def test_a_part_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        part_from_text(text)
