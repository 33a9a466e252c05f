"""What is known of Triton's versions: which cores have which fault, and the page that shows the same table."""

from __future__ import annotations

import re

import pytest

from defensemble_server import ServerError
from defensemble_server.doctor.known_cves import KNOWN_CVES, KNOWN_FAULTS, Weakness, known_weaknesses
from defensemble_server.runtime.find import EMBEDDED_CORE
from tests.support.checkout import ROOT

PAGE = ROOT / "docs" / "security.md"


def known_cves(version: str) -> list[Weakness]:
    return known_weaknesses(version, KNOWN_CVES)


def known_faults(version: str) -> list[Weakness]:
    return known_weaknesses(version, KNOWN_FAULTS)


def test_cves_are_those_that_a_version_is_too_old_for() -> None:
    assert known_cves(EMBEDDED_CORE) == list(KNOWN_CVES)
    assert not [one for one in known_cves("2.59.1") if "CVE-2025-23310" in one.ids]
    assert [one.ids for one in known_cves("2.66.0")] == [("CVE-2026-24206", "CVE-2026-24207"), ("several CVEs",)]
    assert known_cves("2.71.0") == known_cves("3.0") == []


def test_faults_without_a_known_fix_belong_to_the_cores_that_are_known_to_have_them() -> None:
    assert known_faults(EMBEDDED_CORE) == list(KNOWN_FAULTS)
    assert {one.fixed_in is None for one in known_faults(EMBEDDED_CORE)} == {True, False}
    assert all(one.fixed_in is not None for one in known_faults("2.52.0"))
    assert [one.ids for one in known_faults("2.68.0")] == [
        ("core PR 483",),
        ("core PRs 466, 470, 483",),
        ("server PR 8172", "common PR 156"),
        ("server PR 8770",),
    ]
    assert known_faults("2.71.0") == []


@pytest.mark.parametrize("version", ["new", "", "2.x.0"])
def test_another_text_is_no_version(version: str) -> None:
    with pytest.raises(ServerError, match=re.escape(repr(version))):
        known_weaknesses(version)


def test_the_page_shows_the_table() -> None:
    (table,) = re.findall(r"^## What is known\n\n\|.*\n\|.*\n((?:\|.*\n)+)", PAGE.read_text(), re.MULTILINE)
    shown = [tuple(cell.strip() for cell in row.strip("|").split(" | ")) for row in table.splitlines()]
    assert shown == [(one.title, ", ".join(one.ids) or "none", one.affected, one.advice) for one in (*KNOWN_CVES, *KNOWN_FAULTS)]
