"""The doctor's check of int8, by the processor's instructions."""

from __future__ import annotations

from pathlib import Path

import pytest

from defensemble_server.doctor.cpu_int8 import INSTRUCTIONS, int8_check
from defensemble_server.doctor.diagnose import PASS, WARN, Check, diagnose


def cpuinfo(*flags: str) -> str:
    """Two cores in the format of /proc/cpuinfo."""
    name = "Some CPU with avx512_vnni in its name"
    return f"processor\t: 0\nmodel name\t: {name}\nflags\t\t: fpu sse2 {' '.join(flags)}\nbugs\t\t: amx_int8\n\n" * 2


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_each_of_the_instructions_is_enough(instruction: str) -> None:
    check = Check(*int8_check(cpuinfo("avx2", instruction)))
    assert (check.name, check.status, check.fix) == ("int8", PASS, "")
    assert check.text.startswith(f"the processor has {instruction}: ")


@pytest.mark.parametrize("flags", [(), ("avx2",), ("avx2", "avx512f", "avx512bw"), ("avx512_vnni2", "xavx_vnni")])
def test_without_them_int8_saturates_and_a_fix_is_given(flags: tuple[str, ...]) -> None:
    check = Check(*int8_check(cpuinfo(*flags)))
    assert (check.name, check.status) == ("int8", WARN)
    assert "0.60 to 1.26" in check.text
    assert "saturate" in check.text
    assert "--precision fp32" in check.fix


def test_missing_cpuinfo_is_reported_as_unknown() -> None:
    check = Check(*int8_check(""))
    assert (check.name, check.status) == ("int8", WARN)
    assert "/proc/cpuinfo" in check.text
    assert check.fix


def test_the_doctor_looks_at_this_processor() -> None:
    (check,) = [check for check in diagnose([]) if check.name == "int8"]
    assert check == Check(*int8_check(Path("/proc/cpuinfo").read_text()))
