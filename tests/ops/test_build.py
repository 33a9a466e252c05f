"""The build of any library: what it is rebuilt for, how its units are compiled, and what is left of one that fails."""

from __future__ import annotations

import ctypes
import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest

from defensemble_ops import BuildError
from defensemble_ops.build import WARNINGS_AS_ERRORS, Library, Unit, build, cache_folder, find_built, link_or_copy, source_digest
from defensemble_ops.compiler import Compiler, compiler_from_command, find_compiler
from tests.server.backend.test_building import script
from tests.support.facts import assert_facts, raises

GCC = Compiler(("c++",), "12.2")

# Writes its arguments to a file `calls`, and how many run at the same time to a file `together`.
RECORDS = """
[ "$1" = --version ] && { echo "stand-in 1.0"; exit 0; }
here="$(dirname "$0")"
echo "$*" >> "$here/calls"
mkdir "$here/running.$$"; sleep 0.05; ls -d "$here"/running.* | wc -l >> "$here/together"; rmdir "$here/running.$$"
case "$*" in *broken.cc*) echo "broken.cc: no such luck"; exit 3;; esac
while [ $# -gt 1 ]; do [ "$1" = -o ] && out="$2"; shift; done
echo made > "$out"
"""


def sources(folder: Path, *names: str) -> tuple[Unit, ...]:
    for name in names:
        (folder / f"{name}.cc").write_text(f"// {name}\n")
    return tuple(Unit(folder / f"{name}.cc") for name in names)


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    monkeypatch.delenv(WARNINGS_AS_ERRORS, raising=False)  # set in CI
    return compiler_from_command((script(tmp_path, "compiler", RECORDS),), "a test")


def test_the_digest_differs_with_all_that_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WARNINGS_AS_ERRORS, raising=False)
    (unit,) = sources(tmp_path, "a")
    header = tmp_path / "a.h"
    header.write_text("int b;")
    library = Library("a library", "liba.so", (unit,), (header,), ("-O2",), link_flags=("-ldl",))
    variants = [
        library,
        replace(library, path="libb.so"),
        replace(library, flags=("-O3",)),
        replace(library, link_flags=()),
        replace(library, units=(replace(unit, flags=("-DA",)),)),
        replace(library, units=(replace(unit, name="b"),)),
        replace(library, headers=()),
    ]
    digests = [source_digest(variant) for variant in variants]
    (tmp_path / "README.md").write_text("no source")
    assert source_digest(library) == digests[0]
    unit.source.write_text("int c;")
    digests.append(source_digest(library))
    header.write_text("int d;")
    digests.append(source_digest(library))
    monkeypatch.setenv(WARNINGS_AS_ERRORS, "1")
    digests.append(source_digest(library))
    assert len(set(digests)) == len(digests)


def test_a_build_of_another_compiler_is_another(tmp_path: Path, recorder: Compiler) -> None:
    library = Library("a library", "lib/liba.so", sources(tmp_path, "a"))
    cache = tmp_path / "cache"
    assert find_built(library, cache=cache) is None
    built = {build(library, compiler, cache=cache, on_progress=print) for compiler in (recorder, replace(recorder, version="2.0"))}
    assert len(built) == 2
    assert find_built(library, cache=cache) in built
    assert set(cache.iterdir()) == built


def test_each_unit_is_compiled_with_its_own_flags_two_at_a_time(tmp_path: Path, recorder: Compiler) -> None:
    first, second, third = sources(tmp_path, "a", "b", "c")
    units = (replace(first, flags=("-DONE",), name="one"), replace(first, flags=("-DTWO", "-mavx2"), name="two"), second, third)
    library = Library("a library", "liba.so", units, flags=("-O2",), include_folders=(tmp_path,), link_flags=("-ldl",))
    messages: list[str] = []
    build(library, recorder, cache=tmp_path / "cache", on_progress=messages.append)
    *compiled, linked = (tmp_path / "calls").read_text().splitlines()
    assert sorted(call.rpartition("/")[0].split(" -o ")[0] for call in compiled) == sorted(
        f"-O2 -I{tmp_path} {flags}-c {unit.source}" for unit, flags in zip(units, ("-DONE ", "-DTWO -mavx2 ", "", ""), strict=True)
    )
    words = linked.split()
    assert [word.rpartition("/")[2] for word in words] == ["-shared", "one.o", "two.o", "b.o", "c.o", "-o", "liba.so", "-ldl"]
    assert max(map(int, (tmp_path / "together").read_text().split())) == 2
    assert_facts(messages[0], "a library | stand-in 1.0")


def test_the_first_unit_that_fails_ends_the_build(tmp_path: Path, recorder: Compiler) -> None:
    units = sources(tmp_path, "broken", *(f"good{number}" for number in range(10)))
    with raises(BuildError, "a library | exit status 3 | C++17 | apt-get install g++") as caught:
        build(Library("a library", "liba.so", units), recorder, cache=tmp_path / "cache", on_progress=print)
    assert str(caught.value).endswith("broken.cc: no such luck")
    assert list((tmp_path / "cache").iterdir()) == []
    assert len((tmp_path / "calls").read_text().splitlines()) < len(units)


def test_what_completes_a_build_belongs_to_it(tmp_path: Path, recorder: Compiler) -> None:
    library = Library("a library", "liba.so", sources(tmp_path, "a"))
    cache = tmp_path / "cache"

    def fail(folder: Path) -> None:
        (folder / "more").touch()
        raise BuildError("a part is missing")

    with pytest.raises(BuildError, match="a part is missing"):
        build(library, recorder, cache=cache, on_progress=print, complete=fail)
    assert list(cache.iterdir()) == []
    built = build(library, recorder, cache=cache, on_progress=print, complete=lambda folder: (folder / "more").touch(), source="0" * 16)
    assert {path.name for path in built.iterdir()} == {"liba.so", "more"}
    assert built.name.startswith("0" * 16)
    assert find_built(library, cache=cache) is None
    assert find_built(library, cache=cache, source="0" * 16) == built


def test_the_real_compiler_makes_one_library_of_one_source_compiled_twice(tmp_path: Path) -> None:
    compiler = find_compiler()
    assert compiler is not None, "these tests need a C++ compiler: apt-get install g++"
    (tmp_path / "a.cc").write_text('#include "number.h"\nextern "C" int NAME() { return NUMBER; }\n')
    (tmp_path / "include").mkdir()
    (tmp_path / "include/number.h").write_text("#ifndef NUMBER\n#define NUMBER 1\n#endif\n")
    units = (Unit(tmp_path / "a.cc", ("-DNAME=one",), "one"), Unit(tmp_path / "a.cc", ("-DNAME=two", "-DNUMBER=2"), "two"))
    library = Library("a library", "liba.so", units, flags=("-fPIC",), include_folders=(tmp_path / "include",))
    made = ctypes.CDLL(str(build(library, compiler, cache=tmp_path / "cache", on_progress=print) / "liba.so"))
    assert (made.one(), made.two()) == (1, 2)


def test_a_cache_is_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("ops") == tmp_path / "defensemble/ops"


@pytest.mark.parametrize("same_disk", [True, False])
def test_a_file_gets_a_second_name_or_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_disk: bool) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"content")
    if not same_disk:
        if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no second file system at /dev/shm")
        target = next(path for number in itertools.count() if not (path := Path(f"/dev/shm/defensemble-{os.getpid()}-{number}")).exists())
    try:
        link_or_copy(source, target)
        assert target.read_bytes() == b"content"
        assert source.samefile(target) == same_disk
    finally:
        target.unlink()
