"""The words of the project's old dialect do not come back in names, comments, messages, help and documents."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.checkout import ROOT

# Each with what to write instead. A word ends at anything but a letter, so that parts of names count: `_told_of`.
WORDS = {
    r"told": "message, output, or what it is",
    r"tells?": "shows, prints, reports",
    r"says?|said": "shows, reports, is set to",
    r"lies?|lying": "is, is stored",
    r"beside|besides": "next to, in addition to",
    r"whoever|somebody": "the user, the caller, no one",
    r"votes?|voting": "member, weight",
    r"mends?|mended|mending": "fix",
    r"holes?": "vulnerability, gap",
    r"alone": "only, by itself",
    r"anew|afresh": "again",
    r"surely": "reliably",
    r"for want of|in the place of|in place of somebody|as it stands|by and by": "without, instead of",
}
# Keys of results, a value in users' files, a method of Python's files, and a wrong value in a test.
ALLOWED = (
    r"int8_beside_fp32|average_beside_best_member|\"votes\": len|\"random images alone\"|head\.tell\(\)"
    r"|\"average\", \"votes\", .*'votes'\""
)
SELF = "tests/project/test_plain_language.py"
SUFFIXES = (".py", ".md", ".cc", ".h", ".yml", ".yaml", ".toml", "Makefile")


def findings(text: str) -> list[str]:
    """Each use of a word with its line number and what to write instead."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        rest = re.sub(ALLOWED, "", line)
        for word, instead in WORDS.items():
            for match in re.finditer(rf"(?<![A-Za-z])(?:{word})(?![A-Za-z])", rest, re.IGNORECASE):
                found.append(f"{number}: '{match.group()}' ({instead}): {line.strip()[:120]}")
    return found


def test_no_file_uses_the_old_dialect() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    texts = {file: (ROOT / file).read_text() for file in files if file.endswith(SUFFIXES) and file != SELF and (ROOT / file).is_file()}
    found = [f"{file}:{one}" for file, text in texts.items() for one in findings(text)]
    assert not found, f"{len(found)} uses:\n" + "\n".join(found[:50])


@pytest.mark.parametrize("line", ["def _told_of(x)", "# It lies beside the model.", "Let alpha vote.", "messages alone"])
def test_the_dialect_is_found(line: str) -> None:
    assert findings(line)


@pytest.mark.parametrize("line", ["toldered", "def holesome()", "standalone", "mendel", "salient"])
def test_other_words_are_not(line: str) -> None:
    assert not findings(line)
