"""Check whether int8 is faster on this processor."""

from __future__ import annotations

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# Instructions that multiply int8 and accumulate in int32; without them, sums of two products saturate in int16.
INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8")


def int8_check(cpuinfo: str | None = None) -> tuple[str, str, str, str]:
    """Return name, status, text and fix of a `Check` of int8 on the processor described by `cpuinfo` (default: /proc/cpuinfo)."""
    if cpuinfo is None:
        cpuinfo = _CPUINFO.read_text(errors="replace") if _CPUINFO.exists() else ""
    flags = {flag for line in cpuinfo.splitlines() if line.startswith("flags") for flag in line.partition(":")[2].split()}
    supported = [name for name in INSTRUCTIONS if name in flags]
    if not flags:
        return (
            "int8",
            "WARN",
            "/proc/cpuinfo does not list the processor's instructions",
            "measure int8 with python benchmarks/precisions.py",
        )
    if supported:
        return "int8", "PASS", _WITH.format(", ".join(supported)), ""
    return "int8", "WARN", _WITHOUT, "export members for this processor with defensemble export --precision fp32"


_WITH = (
    "the processor has {}: int8 members compute without saturation; measured on one thread with AVX-512 VNNI: ResNet-18 of width 64 at "
    "1.16 to 1.34 of fp32's speed, of width 16 at 0.93 to 1.03, and without masks at 0.66 to 0.81"
)
_WITHOUT = (
    "the processor has none of avx512_vnni, avx_vnni and amx_int8: int8 members ran at 0.60 to 1.26 of fp32's speed without them, and "
    "their sums saturate, so their answers differ from the verified ones"
)
