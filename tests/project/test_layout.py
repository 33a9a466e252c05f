"""The rules of the house: who imports whom and when, what `--help` costs, what `make` offers, and how long a file may be."""

from __future__ import annotations

import ast
import graphlib
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import pytest

from defensemble.cli import cli
from tests.support.checkout import ROOT
from tests.support.command_line import context_of

PACKAGES = {
    "defensemble_images": ROOT / "training/defensemble_images",
    "defensemble_training": ROOT / "training/defensemble_training",
    "defensemble_ops": ROOT / "export/defensemble_ops",
    "defensemble_repository": ROOT / "export/defensemble_repository",
    "defensemble_export": ROOT / "export/defensemble_export",
    "defensemble_server": ROOT / "server_config/defensemble_server",
    "defensemble": ROOT / "client/defensemble",
}
# The repository package is light: what of it is not loads numpy or tritonclient.
HEAVY = {"numpy", "tritonclient", "grpc", "PIL", "rich", "urllib3", "torch", "onnx", "onnxruntime", *PACKAGES} - {
    "defensemble",
    "defensemble_repository",
}
# Who imports whom; of the packages in FACES the client uses nothing else, and no other name than those of `names_of_face`.
MAY_IMPORT = {
    "defensemble_images": set(),
    "defensemble_training": {"defensemble_images"},
    "defensemble_repository": set(),
    "defensemble_ops": set(),
    "defensemble_server": {"defensemble_repository", "defensemble_ops"},
    "defensemble_export": {"defensemble_images", "defensemble_training", "defensemble_repository", "defensemble_ops"},
    "defensemble": set(PACKAGES) - {"defensemble"},
}
FACES = {"defensemble_export", "defensemble_export.editing", "defensemble_training", "defensemble_server", "defensemble_ops"}
LONGEST_FILE = 450
LONGEST_MODULE = 400  # of a package


@dataclass(frozen=True)
class Import:
    """An import of a module; `when` is "module" (when its file is imported), "function" (when that runs) or "types" (never)."""

    file: str
    name: str
    when: str

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    @property
    def module(self) -> str:
        """The module of ours that is imported, be it itself that is named or something in it."""
        return self.name if self.name in modules_of(self.top) else self.name.rpartition(".")[0]


@cache
def modules_of(package: str) -> dict[str, str]:
    """The modules of a package of ours, by name, with their files."""
    found = {}
    for path in PACKAGES[package].rglob("*.py"):
        file = path.relative_to(PACKAGES[package])
        parts = file.parent.parts if file.name == "__init__.py" else file.with_suffix("").parts
        found[".".join((package, *parts))] = file.as_posix()
    return found


@cache
def imports_of(package: str) -> list[Import]:
    folder = PACKAGES[package]
    found: list[Import] = []
    for path in sorted(folder.rglob("*.py")):
        file = path.relative_to(folder)
        parents = (package, *file.parent.parts)
        found += _imports(ast.parse(path.read_text()), file.as_posix(), parents, "module")
    return found


def _imports(node: ast.AST, file: str, parents: tuple[str, ...], when: str) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(file, alias.name, when) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = parents[: len(parents) - node.level + 1] if node.level else ()
        module = ".".join((*above, *([node.module] if node.module else [])))
        yield from (Import(file, f"{module}.{alias.name}", when) for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__"):
        if isinstance(node.args[0], ast.Constant):
            yield Import(file, str(node.args[0].value), when)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        when = "function" if when == "module" else when
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and child in node.body
        yield from _imports(child, file, parents, "types" if for_types else when)


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_imports_only_the_siblings_that_it_may(package: str) -> None:
    assert set(MAY_IMPORT) == set(PACKAGES)
    found = [one for one in imports_of(package) if one.top in set(PACKAGES) - {package}]
    assert {one.top for one in found} <= MAY_IMPORT[package]
    assert {one.module for one in found} <= {module for top in MAY_IMPORT[package] for module in modules_of(top)}


def names_of_face(face: str) -> list[str]:
    """The public names of a package: its `__all__`, or what it imports as itself (`from .x import name as name`)."""
    module = importlib.import_module(face)
    if hasattr(module, "__all__"):
        return list(module.__all__)
    imports = (node for node in ast.parse(Path(str(module.__file__)).read_text()).body if isinstance(node, ast.ImportFrom))
    return [alias.name for node in imports for alias in node.names if alias.asname == alias.name and not alias.name.startswith("_")]


def test_the_client_uses_the_public_faces_of_its_siblings() -> None:
    public = {f"{face}.{name}" for face in FACES for name in names_of_face(face)}
    behind_faces = {face.partition(".")[0] for face in FACES}
    found = [one for one in imports_of("defensemble") if one.top in behind_faces]
    assert len({one.top for one in found}) == len(behind_faces)
    assert [f"{one.file}: {one.name}" for one in found if one.name not in public] == []


@pytest.mark.parametrize("face", sorted(FACES | {"defensemble_images"}))
def test_a_face_holds_only_errors_and_what_has_a_user_outside(face: str) -> None:
    package = face.partition(".")[0]
    used = {one.name for other in set(PACKAGES) - {package} for one in imports_of(other)}
    for path in [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "docs").rglob("*.py")]:
        used |= {one.name for one in _imports(ast.parse(path.read_text()), path.name, (), "module")}
    documents = "".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    module = importlib.import_module(face)
    unused = []
    for name in names_of_face(face):
        is_error = isinstance(getattr(module, name), type) and issubclass(getattr(module, name), (Exception, Warning))
        if not (is_error or f"{face}.{name}" in used or re.search(rf"\b{name}\b", documents)):
            unused.append(name)
    assert unused == []


def module_graph(package: str) -> dict[str, set[str]]:
    """By module, the modules of its own package that it imports, those in functions too; the package's face is left out."""
    graph: dict[str, set[str]] = {name: set() for name in modules_of(package) if name != package}
    names = {file: name for name, file in modules_of(package).items()}
    for one in imports_of(package):
        if one.top == package and one.when != "types" and names[one.file] in graph and one.module in graph:
            graph[names[one.file]] |= {one.module} - {names[one.file]}
    return graph


@pytest.mark.parametrize("package", list(PACKAGES))
def test_no_module_is_imported_by_what_it_imports(package: str) -> None:
    graph = module_graph(package)
    assert any(graph.values())
    graphlib.TopologicalSorter(graph).prepare()  # raises an error that names the cycle


@pytest.mark.parametrize("package", list(PACKAGES))
def test_no_sub_package_is_imported_by_what_it_imports(package: str) -> None:
    """Not through modules at the top of the package either."""
    graph = module_graph(package)
    folders = {name: name.split(".")[1] for name in graph if "/" in modules_of(package)[name]}
    reached: dict[str, set[str]] = {folder: set() for folder in folders.values()}
    for folder, others in reached.items():
        waiting = [name for name in graph if folders.get(name) == folder]
        seen: set[str] = set()
        while waiting:
            name = waiting.pop()
            for other in graph[name] - seen:
                seen.add(other)
                if other not in folders:
                    waiting.append(other)
                elif folders[other] != folder:
                    others.add(folders[other])
    graphlib.TopologicalSorter(reached).prepare()


def test_the_image_reader_needs_numpy_and_pillow_where_it_decodes() -> None:
    foreign = {(one.top, one.when) for one in imports_of("defensemble_images") if one.top not in {*sys.stdlib_module_names, *PACKAGES}}
    assert foreign == {("numpy", "module"), ("PIL", "function"), ("PIL", "types")}


def test_the_exporter_needs_torch_and_training_only_where_a_checkpoint_is_read() -> None:
    heavy = [one for one in imports_of("defensemble_export") if one.top in ("torch", "defensemble_training")]
    assert {one.when for one in heavy} == {"function", "types"}
    assert {one.file for one in heavy} <= {
        "engines/build_all.py",
        "export.py",
        "graphs/tracing.py",
        "members/from_checkpoint.py",
        "verification/images.py",
        "verification/network.py",
    }


def test_the_client_imports_no_machine_learning_and_its_siblings_only_where_a_verb_runs() -> None:
    found = imports_of("defensemble")
    assert not {one.top for one in found} & {"torch", "onnx", "onnxruntime", "onnxscript", "safetensors", "sklearn", "scipy"}
    siblings = [one for one in found if one.top in PACKAGES and one.top not in ("defensemble", "defensemble_images")]
    # The repository package is light, and what edits and commands do is imported where a command runs.
    at_once = [one for one in siblings if one.when == "module"]
    assert {one.top for one in at_once} == {"defensemble_repository"}
    assert {one.file.rpartition("/")[0] for one in at_once} == {"_transport", "ensembles", "load", "probes", "cli/actions"}
    places = {one.file for one in siblings}
    assert places <= {"_image_files.py", "_transport/base.py", "_transport/tls.py", "ops.py", "results/result_file.py"} | {
        file for file in places if file.startswith(("cli/", "ensembles/", "load/", "probes/"))
    }


def test_the_client_imports_tritonclient_only_for_grpc() -> None:
    # 0.5 s, which a caller over HTTP does not pay; it also contains the schema of model configurations.
    at_once = {one.file for one in imports_of("defensemble") if one.top in ("tritonclient", "grpc") and one.when == "module"}
    assert at_once == {f"_transport/grpc_{part}.py" for part in ("transport", "channel", "messages")}


def test_the_repository_package_opens_no_graph() -> None:
    assert not {one.top for one in imports_of("defensemble_repository")} & {"torch", "onnx", "onnxruntime"}


def test_the_server_imports_neither_torch_nor_onnx_nor_the_runtime_whose_library_it_finds() -> None:
    assert not {one.top for one in imports_of("defensemble_server")} & {"torch", "onnx", "onnxruntime", "pytriton", "ziglang"}


def test_the_guard_is_run_without_site_packages() -> None:
    imports = [one for one in imports_of("defensemble_server") if one.file.startswith("process/guard_process/")]
    foreign = {one.name for one in imports if one.top not in sys.stdlib_module_names}
    assert foreign
    assert all(name.startswith("defensemble_server.process.guard_process") for name in foreign)


def test_modules_of_commands_import_only_click_and_names_at_their_top() -> None:
    at_once = [one for one in imports_of("defensemble") if one.file.startswith(("cli/__init__", "cli/commands/")) and one.when == "module"]
    parts_of_probe = {f"cli/commands/probe_{part}.py" for part in ("images", "results", "transfer")}
    assert len({one.file for one in at_once} - parts_of_probe) == len(cli.commands) + 1
    foreign = {one.top for one in at_once} - sys.stdlib_module_names
    assert foreign == {"click", "cloup", "defensemble"}
    ours = {one.name.rpartition(".")[0] for one in at_once if one.top == "defensemble" and one.file != "cli/__init__.py"}
    inside = {one.top for one in imports_of("defensemble") if f"defensemble.{one.file[:-3].replace('/', '.')}" in ours}
    assert inside - sys.stdlib_module_names == {"click", "cloup", "defensemble"}


def test_no_module_shadows_what_it_imports_and_the_outer_folders_are_no_packages() -> None:
    files = [path.name for folder in PACKAGES.values() for path in folder.rglob("*.py")]
    assert not {"onnx.py", "tensorrt.py", "torch.py", "utils.py", "helpers.py"} & set(files)
    assert not [folder for folder in PACKAGES.values() if (folder.parent / "__init__.py").exists()]
    assert [folder for folder in (ROOT / "tests").rglob("*") if list(folder.glob("*.py")) and not (folder / "__init__.py").exists()] == []


def calls(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group, the top one first."""
    yield words
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from calls(command, (*words, name))
        else:
            yield (*words, name)


def test_version_and_every_help_answer_at_once_with_examples() -> None:
    def ask(words: tuple[str, ...]) -> tuple[tuple[str, ...], subprocess.CompletedProcess[str]]:
        command = [sys.executable, "-X", "importtime", "-m", "defensemble", *words]
        return words, subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    verbs = list(calls(cli))
    assert {("train",), ("export",), ("serve",), ("predict",), ("probe", "noise"), ("doctor",), ("demo",)} <= set(verbs)
    with ThreadPoolExecutor(2) as pool:
        for words, done in pool.map(ask, [("--version",), *((*words, "--help") for words in verbs)]):
            assert done.returncode == 0, done.stderr
            loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
            assert "click" in loaded, "the list of imports was not read"
            assert {name.partition(".")[0] for name in loaded} & HEAVY == set(), words
            if words == ("--version",):
                assert re.fullmatch(r"defensemble, version \d+\.\d+\.\d+\n", done.stdout)
            else:
                examples = done.stdout.partition("\n  Examples:\n")[2].partition("\n\n")[0].splitlines()
                assert examples, words
                assert all(line.startswith("    defensemble ") for line in examples), words


def test_every_example_is_a_call_that_its_command_takes() -> None:
    examples = 0
    for words in calls(cli):
        command: click.Command = cli
        for word in words:
            assert isinstance(command, click.Group)
            command = command.commands[word]
        for line in re.findall(r"^ +defensemble (.*)$", command.help or "", re.MULTILINE):
            context_of(*shlex.split(line, comments=True))
            examples += 1
    assert examples >= 20


def test_make_help_lists_the_targets_and_how_tests_are_chosen() -> None:
    done = subprocess.run(["make", "--silent", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [re.fullmatch(r"  make (\w+)((?: \S+)?)  +(\S.*)", line) for line in done.stdout.splitlines()]
    assert None not in lines, "every line names a target and describes it"
    targets = [line[1] for line in lines if line is not None and not line[2]]
    assert targets == "help install check test lint types docs demo serve bench zoo clean".split()
    with_variables = [line[1] + line[2] for line in lines if line is not None and line[2]]
    variables = ("ARGS=tests/images", "ARGS=FILE.py::TEST", "SLOW=1", "PART=2/6", "WORKERS=3")
    assert with_variables == [f"test {variable}" for variable in variables]
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert phony[1].split() == targets


def test_git_ignores_the_key_that_the_readme_makes(tmp_path: Path) -> None:
    assert "> admin.key" in (ROOT / "README.md").read_text()
    if shutil.which("git") is None:
        pytest.skip("there is no git to ask")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    asked = subprocess.run(["git", "check-ignore", "admin.key"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert asked.stdout == "admin.key\n"


def test_contributing_is_a_map_of_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert "how to add a network, a probe or a backend" in " ".join((ROOT / "README.md").read_text().split())
    things = ("a network", "a probe", "a precision", "an edit", "a backend", "a backend parameter")
    assert [thing for thing in things if f"\n**{thing}**: " not in text] == []
    tree = text.partition("```text\n")[2].partition("```")[0]
    for package, folder in PACKAGES.items():
        at = folder.relative_to(ROOT).as_posix()
        assert f"{at}/ " in tree, package
        own = re.split(r"^\S", tree.partition(f"{at}/ ")[2], maxsplit=1, flags=re.MULTILINE)[0]
        rooms = {path.parent.relative_to(folder).as_posix() for path in folder.rglob("__init__.py")} - {".", "cli"}
        assert set(re.findall(r"(?<= )([\w/]+)/(?= )", own)) == rooms, package
    named = re.findall(r"`((?:training|export|server_config|client|tests|benchmarks|docs)/[\w./]+)`", text)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_ci_calls_make_with_one_part_of_the_slow_tests_and_is_a_valid_script() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert text.index("\nmake check\n") < text.index('\nmake test PART="$part/$parts"\n')
    assert "\nhash=$((16#$(git rev-parse --short=7 HEAD)))\npart=$((hash % parts + 1))\n" in text


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """All files of the repository, those that git does not yet know among them, but none that it ignores."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no git checkout, or there is no git: what belongs to the repository is not known")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip(f"git does not list the files: {listing.stderr.strip()}")
    found = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in found if path.is_file()]


def test_no_file_is_long(files: list[Path]) -> None:
    # Measured results are data; a licence has the length that it has.
    read_by_people = [path for path in files if path.suffix in (".py", ".cc", ".h", ".md", ".toml", ".yml", ".txt", "")]
    assert len(read_by_people) > 100
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in read_by_people}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_module_of_a_package_is_long() -> None:
    lengths = {
        f"{package}/{path.relative_to(folder)}": len(path.read_text().splitlines())
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_MODULE} == {}


def test_no_file_holds_what_a_merge_could_not_decide(files: list[Path]) -> None:
    marks = ("<" * 7 + " ", ">" * 7 + " ")
    assert [str(path.relative_to(ROOT)) for path in files if any(line.startswith(marks) for line in _lines(path))] == []


def _lines(path: Path) -> list[str]:
    return path.read_bytes().decode(errors="replace").splitlines()


def test_no_file_names_a_folder_of_a_private_machine(files: list[Path]) -> None:
    found = []
    for path in files:
        for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1):
            # In two halves, or this line would be found.
            if re.search("/" + r"(work|root|home/\w+|Users/\w+)/", line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == []
