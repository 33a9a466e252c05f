"""Configurations with invisible characters: errors name them, and the advised commands repair the file."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from defensemble_export import check_repository
from defensemble_repository.errors import ConfigError
from defensemble_repository.pbtxt import config_from_file
from defensemble_repository.target import ANY
from defensemble_repository.view import RepositoryView
from tests.support import tiny


@pytest.mark.parametrize(
    ("content", "line", "facts"),
    [
        (b"\xef\xbb\xbf{}", 1, ["U+FEFF"]),
        (b"{}\xef\xbb\xbf", 41, ["U+FEFF"]),
        ("utf-16", 1, ["UTF-16"]),
        ("utf-16-le", 1, ["UTF-16"]),
        ("utf-16-be", 1, ["UTF-16"]),
        (b"{}\n# a\0b\n", 42, ["U+0000"]),
        (b"{}\n\xc2\xa0", 42, ["U+00A0", "NO-BREAK SPACE"]),
        (b"{}\n\xe2\x80\x9c", 42, ["U+201C", "LEFT DOUBLE QUOTATION MARK"]),
        (b"{}\n\xff\xfe", 42, ["UTF-8"]),
        (b"{}\nmax_batch_size: 1_000\n", 42, ["'_'"]),
    ],
)
def test_invisible_characters_are_named(tmp_path: Path, content: bytes | str, line: int, facts: list[str]) -> None:
    tiny.write_repository(tmp_path, ensemble=None)
    good = (tmp_path / "alpha/config.pbtxt").read_bytes()
    profile = tmp_path / "alpha/configs/cpu.pbtxt"
    profile.parent.mkdir()
    bad = good.decode().encode(content) if isinstance(content, str) else content.replace(b"{}", good)
    for path in (profile, tmp_path / "alpha/config.pbtxt"):
        path.write_bytes(bad)
        with pytest.raises(ConfigError) as caught:
            config_from_file(path)
        (finding,) = [finding for finding in check_repository(RepositoryView(tmp_path), ANY) if finding.file == path]
        assert (finding.model, finding.line) == ("alpha", line)
        for text in (str(caught.value), finding.text):
            assert [fact for fact in facts if fact not in text] == []
            assert all(character.isprintable() for character in text)


@pytest.mark.parametrize("kind", ["byte order mark", "utf-16"])
def test_the_advised_command_repairs_the_file(tmp_path: Path, kind: str) -> None:
    tiny.write_repository(tmp_path, ensemble=None)
    path = tmp_path / "alpha/config.pbtxt"
    good = config_from_file(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() if kind == "byte order mark" else path.read_text().encode("utf-16"))
    with pytest.raises(ConfigError) as caught:
        config_from_file(path)
    advised = re.search("`([^`]*)`", str(caught.value))
    assert advised is not None
    in_place = kind == "byte order mark"
    command = advised[1].replace("FILE", str(path)) if in_place else f"{advised[1]} {path} > {path}.new && mv {path}.new {path}"
    subprocess.run(["bash", "-c", command], check=True)
    assert config_from_file(path) == good


def test_strings_and_comments_may_contain_any_script(tmp_path: Path) -> None:
    tiny.write_repository(tmp_path, ensemble=None)
    path = tmp_path / "alpha/config.pbtxt"
    more = '# \u00a0\u201c 1_000\r\nparameters { key: \'a # "\u00e9\u200b\' value { string_value: "\\"\u00a0 1_000" } }\r\n'
    path.write_text(path.read_text() + more, newline="")
    assert config_from_file(path).parameters['a # "\u00e9\u200b'].string_value == '"\u00a0 1_000'
