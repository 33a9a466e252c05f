"""The page about a table of the zoo: made of its JSON and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import commit, look, row
from benchmarks.zoo.measuring import AVERAGE, SETS
from benchmarks.zoo.paper import ADVERSARIAL_TRAINING, GPU_ROWS, MISSING, OTHERS, STANDARD, Figures


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Markdown; the same result gives the same text."""
    networks: Mapping[str, Any] = result["networks"]
    average = result[AVERAGE]
    rows = {name: None if told is None else told["rates"] for name, told in networks.items()}
    if average is not None:
        rows[_average_name(average)] = average["rates"]
    return f"""# The zoo on CIFAR-10: transferred attacks, after the paper's Table 2
{look(result)}
{_how(result, json_name)}

## Accuracy

Percent, with Wilson 95 % intervals; n = {result["n"]:,} for each.

{_accuracies(rows, networks, result["source"])}

"paper" is the Table 2 of arXiv 1911.08432, as clean / FGSM / PGD, for a network of width 64 trained for 350 epochs, on examples of a
source that is as large. **These networks have width {_widths(networks)} and {_epochs(networks)} epochs**: they stand beside those figures,
not against them. A figure of the paper that is not known says "missing". The average is of probabilities. The last row is no target: it
is the network that the examples were made on, judged on its own examples, a check that the attacks work.

## What was asked for

{_goals(result)}

## The three rates

Percent of n. `defense_rate` counts the images that the network gets right when clean; `defense_rate_source_fooled` those of them whose
example (after rounding) the source gets wrong; "all right" is the accuracy on the images that all networks of this table, and the average,
get right when clean.

{_rates(rows, networks)}

## At the paper's width

ResNet-18 of width 64, to be trained on a GPU. In percent, clean / FGSM / PGD.

{_not_run()}
"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    fgsm, pgd, source = result["attacks"]["fgsm"], result["attacks"]["pgd"], result["source"]
    hardware, versions, data = result["hardware"], result["versions"], result["data"]
    return "\n".join(
        [
            "Repeat it with `python benchmarks/zoo_table.py --json docs/results/zoo_cifar10.json`, which writes this page too. The numbers",
            f"are those of [{json_name}]({json_name}), measured on {result['measured_at'][:10]} in {result['duration_s']:,.0f} s on "
            f"{hardware['cpu']} (threads: {hardware['threads']}, cores: {hardware['cores']},",
            f"no GPU), Python {versions['python']}, torch {versions['torch']}, seed {result['seed']}, commit {commit(result)}.",
            "",
            f"- Images: {result['n']:,} test images of {data['source']} (digest `{data['digest']}`).",
            f"- Source: `{source['name']}`, a standard network of another initialisation, which is in no row that is compared.",
            f"- FGSM with epsilon {_grey(fgsm['epsilon'])}; PGD with epsilon {_grey(pgd['epsilon'])}, {pgd['steps']} steps of "
            f"{_grey(pgd['step_size'])}, no random start; both crafted once, on all images.",
            "  (The time does not hold the crafting where an earlier run had left the examples.)",
            f"- Noise: uniform in +-{_grey(pgd['epsilon'])}, the attacks' l_inf radius, the same for all networks.",
            "- Examples and noisy images are rounded to 8 bits, as the authors' are, who keep them as PNG.",
            "- The files hold float16 weights; the arithmetic here is float32.",
        ]
    )


def _accuracies(rows: Mapping[str, Any], networks: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    lines = ["| network | clean | noise | FGSM | PGD-7 | paper |", "|---|---|---|---|---|---|"]
    for name, rates in rows.items():
        cells = ["not trained"] * len(SETS) if rates is None else [_cell(rates[what]["accuracy"]) for what in SETS]
        standard = name in networks and name.startswith("standard")
        lines.append(row(_named(name, networks), *cells, _paper(STANDARD if standard else MISSING)))
    own = [_cell(source["rates"][what]["accuracy"]) for what in SETS]
    lines.append(row(f"`{source['name']}` (the source: white box)", *own, "-"))
    return "\n".join(lines)


def _rates(rows: Mapping[str, Any], networks: Mapping[str, Any]) -> str:
    headers = ["network", "images", "defense_rate", "defense_rate_source_fooled", "all right"]
    lines = [row(*headers), "|---" * len(headers) + "|"]
    for name, rates in rows.items():
        shown = f"`{name}`" if name in networks else name
        for what in SETS[1:]:
            if rates is not None:
                told = rates[what]
                names = ("defense_rate", "defense_rate_source_fooled", "accuracy_where_all_right")
                lines.append(row(shown, what, *(_cell(told[one], with_n=True) for one in names)))
        if rates is None:
            lines.append(row(shown, "-", *["not trained"] * 3))
    return "\n".join(lines)


def _goals(result: Mapping[str, Any]) -> str:
    figures, compared = result["figures"], result["average_beside_best_member"]
    standard, pgd, clean = (figures[name] for name in ("standard_clean", "defective_pgd", "defective_clean"))
    network, adversarial = pgd["network"], ADVERSARIAL_TRAINING[2]
    nearest = f"Nearest: `{network}`, PGD {_told(pgd['value'])}, clean {_told(clean['value'])}." if network else "None is trained."
    lines = [
        f"- **The standard network above 85 % clean: {_reached(standard)}.** {_told(standard['value'])}.",
        f"- **A defective network above adversarial training's {adversarial:.2f} % under PGD transfer, with clean accuracy above 91 %: "
        f"{_reached(pgd, clean)}.** {nearest}",
    ]
    both = [figures[f"average_minus_best_member_{what}"] for what in compared]
    told = [f"{what}: {_beside(found)}" for what, found in compared.items() if found is not None]
    beside = "; ".join(told) if told else "fewer than two defective networks are trained"
    lines.append(f"- **The average above its best member, on clean images and under PGD: {_reached(*both)}.** {beside}.")
    lines.append("\nThe last two goals are meant for networks of the paper's width, which were not run; these are small.")
    return "\n".join(lines)


def _beside(found: Mapping[str, Any]) -> str:
    apart = f"only the average is right on {found['only_average_right']:,} images, only the member on {found['only_member_right']:,}"
    return f"{100 * found['difference']:+.2f} points to `{found['best_member']}` ({apart}, of {found['n']:,})"


def _not_run() -> str:
    lines = [row("network", "ours", "paper"), "|---|---|---|"]
    lines += [row(name, "not run", _paper(figures)) for name, figures in GPU_ROWS.items()]
    lines += [row(name, "not trained by this project", _paper(figures)) for name, figures in OTHERS.items()]
    return "\n".join(lines)


def _reached(*figures: Mapping[str, Any]) -> str:
    if any(figure["value"] is None for figure in figures):
        return "not measured"
    return "reached" if all(figure["holds"] for figure in figures) else "not reached"


def _told(value: float | None) -> str:
    return "not trained" if value is None else f"{100 * value:.2f} %"


def _cell(told: Mapping[str, Any] | None, *, with_n: bool = False) -> str:
    if told is None:
        return "-"
    if told["value"] is None:
        return "no image"
    bounds = f"{100 * told['low']:.2f} to {100 * told['high']:.2f}"
    return f"{100 * told['value']:.2f} ({bounds}" + (f"; n = {told['n']:,})" if with_n else ")")


def _paper(figures: Figures) -> str:
    return "missing" if figures == MISSING else " / ".join("missing" if one is None else f"{one:.2f}" for one in figures)


def _named(name: str, networks: Mapping[str, Any]) -> str:
    told = networks.get(name)
    if told is None or told["keep"] == 1:
        return f"`{name}`" if name in networks else name
    return f"`{name}` (defective, mask seed {told['mask_seed']})"


def _average_name(average: Mapping[str, Any]) -> str:
    return f"average of the {len(average['of'])} defective ones"


def _grey(value: float) -> str:
    return f"{value * 255:g}/255"


def _widths(networks: Mapping[str, Any]) -> str:
    return " or ".join(sorted({str(told["width"]) for told in networks.values() if told is not None})) or "unknown"


def _epochs(networks: Mapping[str, Any]) -> str:
    return " or ".join(map(str, sorted({told["epochs"] for told in networks.values() if told is not None}))) or "unknown"
