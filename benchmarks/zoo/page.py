"""The page of the zoo's benchmark, generated only from the result's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.markdown import quick_warning, short_commit, table_row
from benchmarks.zoo.measuring import AVERAGE, SETS
from benchmarks.zoo.paper import ADVERSARIAL_TRAINING, GPU_ROWS, MISSING, OTHERS, STANDARD, Figures


def page(result: Mapping[str, Any], json_name: str) -> str:
    """Return the page of a result as Markdown; the same result gives the same text."""
    networks: Mapping[str, Any] = result["networks"]
    average = result[AVERAGE]
    rows = {name: None if entry is None else entry["rates"] for name, entry in networks.items()}
    if average is not None:
        rows[_average_name(average)] = average["rates"]
    return f"""# The zoo on CIFAR-10: transferred attacks, as in the paper's Table 2
{quick_warning(result)}
{_how(result, json_name)}

## Accuracy

Percent, with Wilson 95 % intervals; n = {result["n"]:,} each.

{_accuracies(rows, networks, result["source"])}

"paper" is Table 2 of arXiv 1911.08432, as clean / FGSM / PGD, for a network of width 64 trained for 350 epochs, on examples of an equally
large source. **These networks have width {_widths(networks)} and {_epochs(networks)} epochs**, so the figures are not comparable. Unknown
figures of the paper are "missing". The average is of probabilities. The last row is the network that the examples were crafted on,
evaluated on its own examples: a check that the attacks work.

## Goals

{_goals(result)}

## The three rates

Percent of n. `defense_rate` is over the images that the network classifies correctly when clean; `defense_rate_source_fooled` over those of
them whose example (after rounding) the source misclassifies; "all correct" is the accuracy on the images that all networks of this table
and the average classify correctly when clean.

{_rates(rows, networks)}

## At the paper's width

ResNet-18 of width 64, which needs a GPU to train. In percent, clean / FGSM / PGD.

{_not_run()}
"""


def _how(result: Mapping[str, Any], json_name: str) -> str:
    fgsm, pgd, source = result["attacks"]["fgsm"], result["attacks"]["pgd"], result["source"]
    hardware, versions, data = result["hardware"], result["versions"], result["data"]
    return "\n".join(
        [
            "Repeat it with `python benchmarks/zoo_table.py --json docs/results/zoo_cifar10.json`, which also writes this page. The",
            f"numbers are from [{json_name}]({json_name}), measured on {result['measured_at'][:10]} in {result['duration_s']:,.0f} s on "
            f"{hardware['cpu']} (threads: {hardware['threads']}, cores: {hardware['cores']},",
            f"no GPU), Python {versions['python']}, torch {versions['torch']}, seed {result['seed']}, commit {short_commit(result)}.",
            "",
            f"- Images: {result['n']:,} test images of {data['source']} (digest `{data['digest']}`).",
            f"- Source: `{source['name']}`, a standard network of another initialisation, which is not among the compared ones.",
            f"- FGSM with epsilon {_grey(fgsm['epsilon'])}; PGD with epsilon {_grey(pgd['epsilon'])}, {pgd['steps']} steps of "
            f"{_grey(pgd['step_size'])}, no random start; both crafted once, on all images.",
            "  (The time does not include the crafting if an earlier run kept the examples.)",
            f"- Noise: uniform in +-{_grey(pgd['epsilon'])}, the attacks' l_inf radius, the same for all networks.",
            "- Examples and noisy images are rounded to 8 bits, as the authors' are, which are saved as PNG.",
            "- The files hold float16 weights; the arithmetic here is float32.",
        ]
    )


def _accuracies(rows: Mapping[str, Any], networks: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    lines = ["| network | clean | noise | FGSM | PGD-7 | paper |", "|---|---|---|---|---|---|"]
    for name, rates in rows.items():
        cells = ["not trained"] * len(SETS) if rates is None else [_cell(rates[what]["accuracy"]) for what in SETS]
        standard = name in networks and name.startswith("standard")
        lines.append(table_row(_title(name, networks), *cells, _paper(STANDARD if standard else MISSING)))
    own = [_cell(source["rates"][what]["accuracy"]) for what in SETS]
    lines.append(table_row(f"`{source['name']}` (the source: white box)", *own, "-"))
    return "\n".join(lines)


def _rates(rows: Mapping[str, Any], networks: Mapping[str, Any]) -> str:
    headers = ["network", "images", "defense_rate", "defense_rate_source_fooled", "all correct"]
    lines = [table_row(*headers), "|---" * len(headers) + "|"]
    for name, rates in rows.items():
        shown = f"`{name}`" if name in networks else name
        for what in SETS[1:]:
            if rates is not None:
                values = rates[what]
                names = ("defense_rate", "defense_rate_source_fooled", "accuracy_where_all_right")
                lines.append(table_row(shown, what, *(_cell(values[name], with_n=True) for name in names)))
        if rates is None:
            lines.append(table_row(shown, "-", *["not trained"] * 3))
    return "\n".join(lines)


def _goals(result: Mapping[str, Any]) -> str:
    figures, compared = result["figures"], result["average_beside_best_member"]
    standard, pgd, clean = (figures[name] for name in ("standard_clean", "defective_pgd", "defective_clean"))
    network, adversarial = pgd["network"], ADVERSARIAL_TRAINING[2]
    nearest = (
        f"Closest: `{network}`, PGD {_percent(pgd['value'])}, clean {_percent(clean['value'])}."
        if network
        else "No defective network is trained."
    )
    lines = [
        f"- **The standard network above 85 % clean: {_reached(standard)}.** {_percent(standard['value'])}.",
        f"- **A defective network above adversarial training's {adversarial:.2f} % under PGD transfer, with clean accuracy above 91 %: "
        f"{_reached(pgd, clean)}.** {nearest}",
    ]
    both = [figures[f"average_minus_best_member_{what}"] for what in compared]
    texts = [f"{what}: {_compare(found)}" for what, found in compared.items() if found is not None]
    comparison = "; ".join(texts) if texts else "fewer than two defective networks are trained"
    lines.append(f"- **The average above its best member, on clean images and under PGD: {_reached(*both)}.** {comparison}.")
    lines.append("\nThe last two goals are set for networks of the paper's width, which were not run; these are small.")
    return "\n".join(lines)


def _compare(found: Mapping[str, Any]) -> str:
    min_difference = (
        f"only the average is correct on {found['only_average_right']:,} images, only the member on {found['only_member_right']:,}"
    )
    return f"{100 * found['difference']:+.2f} points to `{found['best_member']}` ({min_difference}, of {found['n']:,})"


def _not_run() -> str:
    lines = [table_row("network", "ours", "paper"), "|---|---|---|"]
    lines += [table_row(name, "not run", _paper(figures)) for name, figures in GPU_ROWS.items()]
    lines += [table_row(name, "not trained by this project", _paper(figures)) for name, figures in OTHERS.items()]
    return "\n".join(lines)


def _reached(*figures: Mapping[str, Any]) -> str:
    if any(figure["value"] is None for figure in figures):
        return "not measured"
    return "reached" if all(figure["holds"] for figure in figures) else "not reached"


def _percent(value: float | None) -> str:
    return "not trained" if value is None else f"{100 * value:.2f} %"


def _cell(entry: Mapping[str, Any] | None, *, with_n: bool = False) -> str:
    if entry is None:
        return "-"
    if entry["value"] is None:
        return "no image"
    bounds = f"{100 * entry['low']:.2f} to {100 * entry['high']:.2f}"
    return f"{100 * entry['value']:.2f} ({bounds}" + (f"; n = {entry['n']:,})" if with_n else ")")


def _paper(figures: Figures) -> str:
    return "missing" if figures == MISSING else " / ".join("missing" if value is None else f"{value:.2f}" for value in figures)


def _title(name: str, networks: Mapping[str, Any]) -> str:
    entry = networks.get(name)
    if entry is None or entry["keep"] == 1:
        return f"`{name}`" if name in networks else name
    return f"`{name}` (defective, mask seed {entry['mask_seed']})"


def _average_name(average: Mapping[str, Any]) -> str:
    return f"average of the {len(average['of'])} defective networks"


def _grey(value: float) -> str:
    return f"{value * 255:g}/255"


def _widths(networks: Mapping[str, Any]) -> str:
    return " or ".join(sorted({str(entry["width"]) for entry in networks.values() if entry is not None})) or "unknown"


def _epochs(networks: Mapping[str, Any]) -> str:
    return " or ".join(map(str, sorted({entry["epochs"] for entry in networks.values() if entry is not None}))) or "unknown"
