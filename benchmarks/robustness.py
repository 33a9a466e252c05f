"""Measure the zoo with every probe, over the network, and write docs/results/robustness.md and its HTML.

Each probe is a command of `defensemble`. Results that exist are kept: only targets that they lack are measured, such as networks that were
trained since. An interrupted probe is resumed.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

# A script finds only modules in its own folder; `benchmarks` is in the parent folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common.cifar10 import dataset_option
from benchmarks.probing.directions import directions_text
from benchmarks.zoo.plan import FOLDER as ZOO, ROOT
from defensemble_repository.filesystem.atomic_write import write_atomic
from defensemble_server import ServeOptions, serve

RUNS = Path("runs/robustness")  # paths are relative to the checkout, where the commands run: they go into the results
RESULTS = Path("docs/results/robustness")
PAGE = Path("docs/results/robustness.md")
HTML = Path("docs/results/robustness_report.html")
TITLE = "Robustness of the zoo on CIFAR-10"
TARGETS = ("standard", "keep0.5", "adversarial", "average-keep0.5", "mixed")
AVERAGE = ("keep0.5", "keep0.5-b", "keep0.5-c")
MIXED = ("keep0.1", "keep0.3", "keep0.5", "keep0.7")
# Members of no target. Of the first two keeps, the targets have members with other masks.
STANDARD, DEFECTIVE = ("standard-other",), ("keep0.1-other",)
SAME_KEEP = ("surrogate-keep0.5-a", "surrogate-keep0.5-b")


@dataclass(frozen=True)
class Step:
    """One probe.

    Attributes:
        name: Name of its result.
        probe: Name of the probe.
        options: Its options.
        surrogates: Networks of the zoo that it crafts examples on.
    """

    name: str
    probe: str
    options: tuple[str, ...]
    surrogates: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets to measure: for transferred examples, with each member of the average of one keep."""
        return tuple(dict.fromkeys((*TARGETS, *AVERAGE))) if self.probe == "transfer" else TARGETS

    @property
    def result(self) -> Path:
        """Path of the result, with all targets that were measured."""
        return RESULTS / f"{self.name}.json"

    def measured(self) -> list[str]:
        """Return the targets of the result; none if there is none."""
        result = ROOT / self.result
        return [target["name"] for target in json.loads(result.read_text())["targets"]] if result.exists() else []

    def parts(self, suffix: str = ".json") -> dict[Path, list[str]]:
        """Return the files in `RUNS` of runs that lack some targets, with the targets: results, or ledgers of interrupted runs."""
        found = sorted((ROOT / RUNS).glob(f"{self.name}.*{suffix}"), key=lambda path: path.stat().st_mtime)
        parts = {path.relative_to(ROOT): path.name[len(self.name) + 1 : -len(suffix)].split("+") for path in found}
        return {path: names for path, names in parts.items() if set(names) <= set(self.targets)}

    def arguments(self, url: str, dataset: str, targets: Sequence[str], out: Path) -> list[str]:
        """Return the arguments of `defensemble` that measure targets."""
        surrogates = [word for name in self.surrogates for word in ("--surrogate", str(ZOO / f"{name}.safetensors"))]
        if surrogates:  # the same file for targets that are measured later
            surrogates += ["--examples", str(RUNS / f"{self.name}.examples")]
        chosen = [word for target in targets for word in ("--target", target)]
        return [
            "probe",
            self.probe,
            url,
            "--dataset",
            dataset,
            *chosen,
            *surrogates,
            *self.options,
            "--out",
            str(out),
        ]


def _transfer(name: str, images: int, preset: str, surrogates: tuple[str, ...], *options: str) -> Step:
    return Step(name, "transfer", ("--limit", str(images), "--input", "8bit", "--preset", preset, *options), surrogates)


_JOINT = ("--ensemble-of-surrogates", "probabilities")
STEPS = (
    Step("noise", "noise", ("--limit", "5000")),
    _transfer("transfer-standard", 5000, "paper-table2", STANDARD),
    _transfer("transfer-defective", 5000, "paper-table2", DEFECTIVE),
    _transfer("pgd16-standard", 2000, "paper-pgd16", STANDARD),
    _transfer("pgd16-defective", 2000, "paper-pgd16", DEFECTIVE),
    _transfer("pgd16-ensemble", 2000, "paper-pgd16", (*STANDARD, *DEFECTIVE), *_JOINT),
    Step("square", "square", ("--limit", "50", "--budget", "2500")),
    Step("hopskipjump", "hopskipjump", ("--limit", "50", "--budget", "2500")),
    Step("boundary", "boundary", ("--limit", "50", "--steps", "5000")),
    Step("adaptive", "adaptive", ("--limit", "2000", "--input", "8bit"), DEFECTIVE),
    Step("shuffle", "shuffle", ("--limit", "5000")),
    Step("cue-conflict", "cue-conflict", ("--limit", "1000")),
    Step("corruptions", "corruptions", ("--limit", "1000")),
    _transfer("transfer-same-keep", 5000, "paper-table2", SAME_KEEP),
    _transfer("pgd16-same-keep", 2000, "paper-pgd16", SAME_KEEP),
    Step("adaptive-same-keep", "adaptive", ("--limit", "500", "--input", "8bit"), SAME_KEEP),  # 440 gradients for each image
)
"""The most informative first."""


def prepare_repository(repository: Path, dataset: str) -> list[str]:
    """Export the networks that exist and their ensembles, unless the repository has them, and return the models that exist."""
    wanted = dict.fromkeys(("standard", "adversarial", *AVERAGE, *MIXED))
    existing = [name for name in wanted if (ROOT / ZOO / f"{name}.safetensors").exists()]
    new = [str(ZOO / f"{name}.safetensors") for name in existing if not (ROOT / repository / name).exists()]
    if new:
        _run(["export", *new, "--no-ensemble", "--repository", str(repository), "--dataset", dataset])
    targets = list(existing)
    for ensemble, members in (("average-keep0.5", AVERAGE), ("mixed", MIXED)):
        if set(members) <= set(existing):
            if not (ROOT / repository / ensemble).exists():
                _run(["ensemble", "create", ensemble, *members, "--repository", str(repository)])
            targets.append(ensemble)
    return targets


def run_step(step: Step, url: str, dataset: str, targets: Sequence[str]) -> None:
    """Measure those of the step's targets that exist and that its results lack, after those of an interrupted run.

    The results stay in `RUNS`, so that the checkout stays as it is while probes record its commit.
    """
    if missing := [name for name in step.surrogates if not (ROOT / ZOO / f"{name}.safetensors").exists()]:
        click.echo(f"{step.name}: not run, because {', '.join(missing)} is not trained (make zoo)")
        return
    runs = [*step.parts(".ledger").values()]
    known = [name for names in (step.measured(), *step.parts().values(), *runs) for name in names]
    runs.append([name for name in step.targets if name in targets and name not in known])
    for todo in filter(None, runs):
        out = RUNS / f"{step.name}.{'+'.join(todo)}.json"
        resume = ["--resume"] if (ROOT / out).with_suffix(".ledger").exists() else []
        _run([*step.arguments(url, dataset, todo, out), *resume])


def collect(step: Step) -> None:
    """Add what was measured to the step's result."""
    for part, targets in step.parts().items():
        measured = step.measured()
        if set(targets) <= set(measured) or (ROOT / part).with_suffix(".ledger").exists():  # interrupted, or a target failed
            continue
        if measured:
            merged = RUNS / f"{step.name}.json"
            hint = f"if the examples differ, those of another machine are lost: delete {step.result} to measure all targets again"
            _run(["probe", "merge", str(step.result), str(part), "--out", str(merged)], hint)
            part = merged
        write_atomic(ROOT / step.result, (ROOT / part).read_bytes())


def _run(arguments: Sequence[str], hint: str = "run this script again to continue") -> None:
    click.echo(f"$ defensemble {shlex.join(arguments)}")
    status = subprocess.run([sys.executable, "-m", "defensemble", *arguments], cwd=ROOT, check=False).returncode
    if status != 0:
        raise click.ClickException(f"the command above ended with status {status}; {hint}")


@click.command(
    epilog="""\b
    Examples:
      python benchmarks/robustness.py --dataset data/cifar10
      python benchmarks/robustness.py --only noise --only square
    """
)
@dataset_option()
@click.option("--only", multiple=True, type=click.Choice([step.name for step in STEPS]), help="Run only this probe. Can be repeated.")
@click.option("--pages", "only_pages", is_flag=True, help="Run no probe, and write the pages of what was measured.")
@click.option("--list", "listed", is_flag=True, help="List the probes with the targets that were measured, and run none.")
def main(data_dir: Path | None, only: tuple[str, ...], only_pages: bool, listed: bool) -> None:
    """Measure the zoo with every probe and write docs/results/robustness.md and its HTML.

    It takes three hours on two cores. Run it again to continue: what was measured is in runs/robustness/, and is added to
    docs/results/robustness/ at the end, or with --pages.
    """
    if listed:
        for step in STEPS:
            click.echo(f"{step.name}: {', '.join(step.measured()) or 'to do'}")
        return
    if only_pages:
        write_pages()
        return
    dataset = "cifar10" if data_dir is None else f"cifar10={data_dir.resolve()}"
    (ROOT / RUNS).mkdir(parents=True, exist_ok=True)
    targets = prepare_repository(RUNS / "repository", dataset)
    with serve(ROOT / RUNS / "repository", ServeOptions(http_port=0, grpc_port=0, metrics_port=0)) as server:
        for step in STEPS:
            if not only or step.name in only:
                run_step(step, server.http_url, dataset, targets)
    write_pages()


def write_pages() -> None:
    """Collect the results, and write the HTML report and the page: claims of the paper, what was not run, main parts of the report."""
    (ROOT / RESULTS).mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        collect(step)
    results = {step.name: step.result for step in STEPS if (ROOT / step.result).exists()}
    if not results:
        raise click.ClickException("there is no result yet: run this script without --only")
    files = [str(path) for path in results.values()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.md"
        _run(["report", *files, "--title", TITLE, "--out", str(HTML)])
        _run(["report", *files, "--title", TITLE, "--out", str(report)])
        statements, text = _main_parts(report.read_text().partition("\n")[2])
    loaded = {name: json.loads((ROOT / path).read_text()) for name, path in results.items()}
    missing = [line for step in STEPS if (line := _not_run(step)) is not None]
    not_run = "\n".join(missing) if missing else "Everything was run."
    write_atomic(ROOT / PAGE, _PAGE.format(TITLE, statements, directions_text(loaded), not_run, text).encode())


def _main_parts(report: str) -> tuple[str, str]:
    """Return the statements of a report in Markdown, and its failed checks, its overview and the first table of each result."""
    text, count = re.subn(r"^- \*\*PASS\*\* .*\n", "", report, flags=re.MULTILINE)
    text = text.replace("## Sanity checks\n", f"## Sanity checks\n\n{count} passed.\n", 1)
    kept = []
    for block in re.split(r"\n(?=## )", text):
        start, *tables = re.split(r"\n(?=### )", block)
        kept.append(f"{start.splitlines()[0]}\n\n{tables[0].rstrip()}" if tables else start.rstrip())
    return kept[0].strip(), "\n\n".join(kept[1:]) + "\n"


def _not_run(step: Step) -> str | None:
    """Return the line of a step whose result lacks targets."""
    measured = step.measured()
    lacking = [name for name in step.targets if name not in measured]
    targets = "all targets" if len(lacking) == len(step.targets) else ", ".join(f"`{name}`" for name in lacking)
    return f"- `{step.name}` (`{step.probe} {' '.join(step.options)}`): {targets}" if lacking else None


_PAGE = """# {0}

Repeat it with `python benchmarks/robustness.py`, which also writes this page. [The HTML page](robustness_report.html) has all of each
result: threat model, sanity checks, tables, charts, examples, settings and digests. The networks are those of the
[zoo](../../zoo/README.md): ResNet-18s of width 16, trained for 8 or 12 epochs. The figures are not comparable with the paper's, only their
directions are. `mixed` averages four defective networks of keep 0.1 to 0.7, `average-keep0.5` three of keep 0.5 with different masks, of
which `keep0.5` was trained for 8 epochs and the others for 12; `adversarial` was trained on PGD-3 examples.

{1}

## Which directions of the paper held

Accuracies are compared on the same images by McNemar's exact test at the level 0.05, not adjusted for the number of tests; other values
by their 95 % intervals.

{2}

## Not run

{3}

{4}"""


if __name__ == "__main__":
    main()
