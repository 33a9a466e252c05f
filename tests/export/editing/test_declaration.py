"""Ensembles as YAML files: exact round trips, and errors with line numbers."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, strategies as st

from defensemble_export import DeclarationError, EnsembleError, ExportError
from defensemble_export.editing import read_declaration, yaml_from_ensemble
from defensemble_export.editing.declaration import LARGEST_FILE, ensemble_from_yaml
from defensemble_repository.ensemble import Ensemble, Member
from tests.support.ensembles import ensembles
from tests.support.facts import raises

MEMBERS = "members:\n  - model: keep0.1\n"
WHOLE = """\
name: ensemble
average: probabilities
members:
  - model: keep0.1
    version: 1
    weight: 1
  - model: keep0.3
    version: 2
    weight: 0.5
"""


def test_reads_and_writes_the_documented_form() -> None:
    expected = Ensemble("ensemble", (Member("keep0.1"), Member("keep0.3", 2, 0.5)))
    assert ensemble_from_yaml(WHOLE, "file") == expected
    assert yaml_from_ensemble(expected) == WHOLE


@given(ensembles())
def test_round_trip(ensemble: Ensemble) -> None:
    text = yaml_from_ensemble(ensemble)
    assert ensemble_from_yaml(text, "file") == ensemble
    assert yaml_from_ensemble(ensemble_from_yaml(text, "file")) == text
    # Another reader finds the same numbers and names.
    loaded = yaml.safe_load(text)
    assert loaded["name"] == ensemble.name
    assert [Member(**member) for member in loaded["members"]] == list(ensemble.members)


def test_defaults() -> None:
    assert ensemble_from_yaml("members: [{model: a}, {model: b, weight: .5}]\nname: e", "file") == Ensemble(
        "e", (Member("a", 1, 1.0), Member("b", 1, 0.5)), "probabilities"
    )
    assert ensemble_from_yaml(f"name: e\naverage: logits\n{MEMBERS}", "file").average == "logits"


@pytest.mark.parametrize("name", ["on", "no", "null", "1e3", "0.5", "017", "0x1f", "2026-01-01", "true", "1_000"])
def test_names_are_plain_text(name: str) -> None:
    for written in (name, f"'{name}'", f'"{name}"'):
        assert ensemble_from_yaml(f"name: {written}\n{MEMBERS}", "file").name == name
        assert ensemble_from_yaml(f"name: e\nmembers:\n- model: {written}\n", "file").members == (Member(name),)


@pytest.mark.parametrize(
    ("text", "weight"), [("2", 2.0), ("1.", 1.0), (".25", 0.25), ("1e3", 1000.0), ("+2.5E-1", 0.25), ("1e-300", 1e-300), ("9" * 300, 1e300)]
)
def test_accepts_usual_number_formats_as_weights(text: str, weight: float) -> None:
    assert ensemble_from_yaml(f"name: e\nmembers:\n- {{model: a, weight: {text}}}\n", "file").members[0].weight == weight


@pytest.mark.parametrize(
    ("text", "line", "facts"),
    [
        ("", None, "file | empty | name | members"),
        ("# nothing\n---\n", None, "file | empty"),
        ("- a\n- b\n", 1, "list"),
        ("ensemble\n", 1, "ensemble | 'key: value'"),
        ("name: e\n", 1, "members: ..."),
        ("{}\n", 1, "name | members"),
        (f"name: e\n{MEMBERS}nmae: f\n", 4, "'nmae' | name, average, members | name?"),
        (f"name: e\n{MEMBERS}    wieght: 2\n", 4, "'wieght' | model, version, weight | weight?"),
        (f"name: e\n{MEMBERS}zzz: 2\n", 4, "'zzz' | name, average, members"),
        (f"name: e\n{MEMBERS}name: f\n", 4, "name | twice | line 1"),
        (f"name: e\n{MEMBERS}    model: b\n", 4, "model | twice | line 3"),
        (f"name: e\n{MEMBERS}<<: {{average: logits}}\n", 4, "'<<'"),
        (f"name: e\n{MEMBERS}? [a]\n: b\n", 4, "name, average, members | list"),
        (f"name: [e]\n{MEMBERS}", 1, "name | list"),
        (f"name: {{a: b}}\n{MEMBERS}", 1, "name | keys"),
        (f"name:\n{MEMBERS}", 1, "name | ''"),
        (f"name: |\n  e\n{MEMBERS}", 1, "name | 'e\\n'"),
        (f"name: a b\n{MEMBERS}", 1, "name | 'a b'"),
        (f"name: ../e\n{MEMBERS}", 1, "letters, digits"),
        (f"name: average_e\n{MEMBERS}", 1, "average_"),
        (f"average: mean\nname: e\n{MEMBERS}", 1, "average | probabilities, logits | 'mean'"),
        (f"name: e\naverage: Logit\n{MEMBERS}", 2, "'Logit' | logits?"),
        (f"name: e\naverage: [logits]\n{MEMBERS}", 2, "average | list"),
        ("name: e\nmembers:\n", 2, "members | list | nothing"),
        ("name: e\nmembers: keep0.1\n", 2, "members | list | keep0.1"),
        ("name: e\nmembers:\n  model: keep0.1\n", 3, "members | list | keys"),
        ("name: e\nmembers: []\n", 2, "no members"),
        ("name: e\nmembers:\n  - keep0.1\n", 3, "model, version, weight | keep0.1 | 'key: value'"),
        ("name: e\nmembers:\n  - weight: 1\n", 3, "model: ..."),
        ("name: e\nmembers:\n  - model: a/b\n", 3, "'a/b'"),
        ("name: e\nmembers:\n  - weight: 1\n    model: uncertainty_a\n", 4, "average_"),
        (f"name: keep0.1\n{MEMBERS}", 3, "same name"),
        (
            f"name: e\n{MEMBERS}  - model: b\n  - model: keep0.1\n    version: 1\n",
            5,
            "keep0.1@1 | twice | larger weight",
        ),
        (f"name: e\n{MEMBERS}    weight: 1\n  - {{model: b, weight: 1e-9}}\n", 3, "b | 1e-07"),
        (f"name: &n e\n{MEMBERS}", 1, "anchors"),
        (f"name: e\naverage: *n\n{MEMBERS}", 2, "aliases"),
        (f"name: !!str e\n{MEMBERS}", 1, "tags"),
        (f"name: !!python/object/apply:os.system [ls]\n{MEMBERS}", 1, "tags"),
        (f"name: ! e\n{MEMBERS}", 1, "tags"),
        (f"name: e\n{MEMBERS}---\nname: f\n", 4, "another document"),
        (f"name: e\n{MEMBERS}\tweight: 2\n", 4, "spaces | tabs"),
        ("name: e\nmembers:\n - model: a\n   weight: [1\n", 5, "YAML | flow sequence"),
        (f"name: 'e\n{MEMBERS}", 4, "YAML | quoted scalar"),
        (f"name: e\x00\n{MEMBERS}", 1, "'\\x00'"),
        (f"name: e\naverage: \x1b\n{MEMBERS}", 2, "'\\x1b'"),
        (f'name: "\\U7fffffff"\n{MEMBERS}', 1, "YAML"),
        (f"name: {'[' * 3000}", 1, "too deeply"),
        ("%YAML 3.0\n---\nname: e\n", 1, "YAML"),
    ],
)
def test_reports_the_line_of_an_invalid_declaration(text: str, line: int | None, facts: str) -> None:
    with raises(DeclarationError, facts) as caught:
        ensemble_from_yaml(text, "file")
    assert str(caught.value).startswith("file" if line is None else f"file:{line}: "), caught.value
    assert isinstance(caught.value, ExportError)


@pytest.mark.parametrize(
    "version", ["true", "1.5", "'1'", "~", "", "[1]", "{}", "01", "0x1", "1_0", "1:30", "-1", "0", "9" * 19, "9" * 5000, "one"]
)
def test_a_version_must_be_an_integer_in_range(version: str) -> None:
    with raises(DeclarationError, "file:4: | version | 9223372036854775807"):
        ensemble_from_yaml(f"name: e\n{MEMBERS}    version: {version}\n", "file")


@pytest.mark.parametrize(
    "weight", ["true", "yes", "'1'", '"2.0"', "~", "", "[1]", "{a: 1}", "heavy", "01", "0x1", "1_0", "1:30", "1,5", "infinity", "1e"]
)
def test_a_weight_must_be_a_number(weight: str) -> None:
    with raises(DeclarationError, "file:4: | weight | above 0"):
        ensemble_from_yaml(f"name: e\n{MEMBERS}    weight: {weight}\n", "file")


@pytest.mark.parametrize("weight", [".inf", "-.INF", ".NaN", "0", "0.0", "-1", "1e999", "1e-999"])
def test_reports_the_line_of_an_invalid_weight(weight: str) -> None:
    with raises(DeclarationError, "file:4: | 'keep0.1' | above 0") as caught:
        ensemble_from_yaml(f"name: e\n{MEMBERS}    weight: {weight}\n", "file")
    assert isinstance(caught.value.__cause__, EnsembleError)


def test_rejects_aliases() -> None:
    layers = [f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]" for number in range(1, 40)]
    with pytest.raises(DeclarationError, match="anchors"):
        ensemble_from_yaml("\n".join(["a0: &a0 x", *layers]), "file")


@given(st.text(st.sampled_from("name: e\n-[]{}?!&*|>'\"%@`#,\t\\Uuxf019.\ufeff\u2028model"), max_size=40))
def test_any_text_is_an_ensemble_or_an_error(text: str) -> None:
    for candidate in (text, f"name: e\nmembers:\n- {text}\n", f"name: {text}\n{MEMBERS}"):
        with suppress(DeclarationError):
            assert isinstance(ensemble_from_yaml(candidate, "file"), Ensemble)


def test_accepts_byte_order_marks_and_any_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "ensemble.yaml"
    for content in (WHOLE.encode(), b"\xef\xbb\xbf" + WHOLE.encode(), WHOLE.replace("\n", "\r\n").encode(), WHOLE.rstrip().encode()):
        path.write_bytes(content)
        assert read_declaration(path) == ensemble_from_yaml(WHOLE, "file")
    path.write_bytes(WHOLE.replace("\n", "\r\n").replace("weight: 0.5", "weight: no").encode())
    with raises(DeclarationError, f"{path}:9: | weight"):
        read_declaration(path)


def test_rejects_binary_large_and_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "ensemble.yaml"
    path.write_bytes(b"name: e\nmembers: \xff\n")
    with raises(DeclarationError, f"{path}:2: | byte 17 | UTF-8"):
        read_declaration(path)
    path.write_bytes(WHOLE.encode("utf-16"))
    with raises(DeclarationError, f"{path}:1: | byte 0 | UTF-8"):
        read_declaration(path)
    path.write_bytes(WHOLE.encode() + b"#" * (LARGEST_FILE - len(WHOLE)))
    assert read_declaration(path).name == "ensemble"
    path.write_bytes(path.read_bytes() + b"#")
    with pytest.raises(OSError, match="1048576 bytes"):
        read_declaration(path)
    with pytest.raises(FileNotFoundError):
        read_declaration(tmp_path / "none.yaml")
    with pytest.raises(IsADirectoryError):
        read_declaration(tmp_path)
    if os.geteuid() != 0:
        path.chmod(0)
        with pytest.raises(PermissionError):
            read_declaration(path)
