"""Class names: files of every system are read, and names that cannot be distinguished are rejected with their places."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from defensemble_export import ExportError, OnnxSource
from defensemble_export.entries.members import ExportedMember, planned_files
from defensemble_export.labels import checked_class_names, default_labels, labels_from_file
from defensemble_repository.transaction import write_files
from tests.support import tiny
from tests.support.facts import raises

CAFE, CAFE_DECOMPOSED = "caf\u00e9", "cafe\u0301"


def member(name: str, class_names: tuple[str, ...]) -> ExportedMember:
    return ExportedMember(name, tiny.linear_onnx(1), tiny.SHAPE, 3, class_names, None)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("trailing", ["", "\n", "\r\n\r\n", "\n  \n\t\n"])
def test_line_ends_of_every_system_are_read(tmp_path: Path, end: str, trailing: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(f"\ufeffcat{end}dog {end}röd räv{end}{CAFE_DECOMPOSED}{trailing}".encode())
    assert labels_from_file(path) == ("cat", "dog", "röd räv", CAFE)
    assert default_labels(3) == ("0", "1", "2")


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"", ["is empty", "one class name per line"]),
        (b"\n\n", ["is empty"]),
        (b"cat\n\ndog\n", ["line 2 blank"]),
        (b"cat\r   \rdog\r\r\rcow", ["lines 2, 4, 5 blank"]),
        (b"cat\n\xff\xfe\n", ["not UTF-8", "byte 4"]),
        ("cat\ndog\n".encode("utf-16"), ["line 1", "iconv -f UTF-16 -t UTF-8"]),
        ("cat\ndog\n".encode("utf-16-le"), ["line 1", "iconv"]),
        (b"cat\nd\x00og\n", ["zero byte", "line 2"]),
        (b"cat\nd\x07og\n\xc2\x85x\n", ["'d\\x07og' (line 2)"]),
        (b"cat\ncrane\ndog\ncrane\nmaillot\nmaillot \n", ["'crane' (lines 2, 4)", "'maillot' (lines 5, 6)", "line 4 to 'crane (2)'"]),
        (f"{CAFE}\ndog\n{CAFE_DECOMPOSED}\n".encode(), [f"'{CAFE}' (lines 1, 3)", "NFC"]),
        (b"dog\n" * 500, ["'dog' (lines 1, 2, 3, 4, 5 and 495 more)"]),
        (b"".join(b"%d\n" % (n // 2) for n in range(1000)), ["'0' (lines 1, 2)", "and 480 more"]),
        (None, ["does not exist"]),
    ],
)
def test_invalid_class_names_are_rejected_with_their_places(tmp_path: Path, content: bytes | None, facts: list[str]) -> None:
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError) as caught:
        labels_from_file(path)
    assert [fact for fact in [str(path), *facts] if fact not in str(caught.value)] == []
    assert len(str(caught.value)) < 1000 + len(str(path))
    with pytest.raises(ExportError, match="is not a file"):
        labels_from_file(tmp_path)


@given(st.lists(st.text(), max_size=8))
def test_names_are_all_kept_or_rejected(names: list[str]) -> None:
    normalised = tuple(unicodedata.normalize("NFC", name) for name in names)
    try:
        assert checked_class_names(names, "these") == normalised
    except ExportError:
        allowed = all(name and not any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") for one in name) for name in normalised)
        assert not allowed or len(set(normalised)) < len(names)
    else:
        assert len(set(normalised)) == len(names)


def test_names_passed_in_python_are_checked_alike() -> None:
    names = tuple(f"class {index % 600}" for index in range(1000))
    with raises(ExportError, "'class 0' | 0, 600") as caught:
        ExportedMember("a", b"", (3, 8, 8), 1000, names, None)
    assert len(str(caught.value)) < 1000
    with pytest.raises(ExportError, match=r"'class 0' \(classes 0, 600\)"):
        OnnxSource(Path("a.onnx"), "a", class_names=names)
    with pytest.raises(ExportError, match="sequence of strings") as caught:
        OnnxSource(Path("a.onnx"), "a", class_names="x" * 5000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300
    assert OnnxSource(Path("a.onnx"), "a", class_names=(CAFE_DECOMPOSED, "b")).class_names == (CAFE, "b")


def test_a_new_version_may_use_another_unicode_form(tmp_path: Path) -> None:
    write_files(tmp_path, planned_files(tmp_path, [member("a", (CAFE, "b", "c"))]))
    labels = tmp_path / "a/labels.txt"
    labels.write_text(labels.read_text().replace(CAFE, CAFE_DECOMPOSED))
    plan = planned_files(tmp_path, [member("a", (CAFE_DECOMPOSED, "b", "c"))], replace=True)
    assert "a/2/model.onnx" in plan
    with pytest.raises(ExportError, match="class names"):
        planned_files(tmp_path, [member("a", ("cafe", "b", "c"))], replace=True)
