"""Where Triton runs, and its environment."""

from __future__ import annotations

import pytest

from defensemble_server import RuntimeMissingError
from defensemble_server.runtime.find import check_platform, find_runtime
from tests.support.facts import assert_facts


@pytest.mark.parametrize(
    ("system", "machine", "libc", "expected"),
    [
        ("Linux", "x86_64", ("glibc", "2.34"), "glibc 2.35 | 2.34 | Debian 12 | Ubuntu 22.04"),
        ("Linux", "x86_64", ("glibc", "2.9"), "glibc 2.35 | 2.9"),
        ("Linux", "x86_64", ("", ""), "glibc | --runtime docker"),
        ("Linux", "aarch64", ("glibc", "2.36"), "Linux x86_64 | Linux aarch64 | --runtime docker"),
        ("Darwin", "x86_64", ("", ""), "Linux x86_64 | Darwin x86_64 | --runtime docker"),
    ],
)
def test_a_platform_that_the_wheel_does_not_run_on_is_named(system: str, machine: str, libc: tuple[str, str], expected: str) -> None:
    with pytest.raises(RuntimeMissingError) as caught:
        check_platform(system, machine, libc)
    assert_facts(str(caught.value), expected)
    check_platform("Linux", "x86_64", ("glibc", "2.35"))
    check_platform("Linux", "x86_64", ("glibc", "3.0"))


@pytest.mark.parametrize(
    ("name", "usual"), [("ORT_DISABLE_TELEMETRY", "1"), ("MALLOC_ARENA_MAX", "2"), ("MALLOC_MMAP_THRESHOLD_", "131072")]
)
def test_telemetry_is_off_and_memory_is_returned_unless_the_environment_overrides_it(
    name: str, usual: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name, raising=False)
    assert find_runtime("embedded", on_progress=lambda text: None).environment[name] == usual
    monkeypatch.setenv(name, "0")
    assert find_runtime("embedded", on_progress=lambda text: None).environment[name] == "0"
