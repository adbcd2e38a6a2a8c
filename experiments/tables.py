"""Make the README's result tables from the measured cells; says which cells are missing.

    python experiments/tables.py            # print
    python experiments/tables.py --write    # put them into README.md between its markers
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from ablation import ROWS
from compare_tables import compare_table, linears_table, whole_table
from deployment_tables import deployment_table
from mrem_tables import mrem_settings_table, mrem_table, plot_mrem
from paper_tables import known_cells
from paper_tables import tables as paper_tables
from scipy.stats import spearmanr

from autoquant.assets import default_backbone
from autoquant.compare.bootstrap import paired_difference
from autoquant.compare.table import difference_text
from autoquant.core.allocation import BitAllocation
from autoquant.core.settings import Recipe, from_mapping

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
METHODS = {
    "dnas": "**autoquant `default`**",
    "fisher": "Fisher knapsack",
    "uniform": "uniform",
    "random": "random",
    "reversed": "reversed",
}
RATIOS, SEEDS = (15, 25), (0, 1, 2)


@dataclass(frozen=True)
class Options:
    write: bool = False
    """Replace the tables in README.md."""


def allocations() -> str:
    """Method x ratio: mean and range of the metric over seeds, on SST-2."""
    cells = [json.loads(path.read_text()) for path in sorted((RESULTS / "allocations").glob("sst2-*.json"))]
    if not cells:
        return "No cells yet: run `python experiments/allocations.py --data-dir glue`."
    for cell in cells:  # a setting that came later had its default's effect before
        cell["recipe"] = dataclasses.asdict(from_mapping(Recipe, cell["recipe"], "cell"))
    for key in ("recipe", "teacher_sha256", "data_sha256"):
        if len({json.dumps(cell[key], sort_keys=True) for cell in cells}) > 1:
            raise SystemExit(f"The cells differ in {key}: a table must not mix them; measure the older ones again.")
    frame = pd.DataFrame(
        {
            "method": cell["method"],
            "ratio": int(cell["ratio"]),
            "seed": cell["seed"],
            "value": 100 * cell["metrics"][cell["metric"]],
            "search": cell["seconds"]["search"],
            "recover": cell["seconds"]["recover"],
        }
        for cell in cells
    )
    full = 100 * cells[0]["full_precision"][cells[0]["metric"]]
    lines = ["| allocation | 15x smaller | 25x smaller | search s | recovery s |", "|---|---|---|---|---|"]
    lines.append(f"| full precision | {full:.2f} | {full:.2f} | | |")
    for method, label in METHODS.items():
        rows = frame[frame.method == method]
        cell_texts = [_cell(rows[rows.ratio == ratio]) for ratio in RATIOS]
        spent = [f"{rows[name].median():.0f}" if len(rows) else "" for name in ("search", "recover")]
        lines.append(f"| {label} | {' | '.join(cell_texts)} | {' | '.join(spent)} |")
    present = {(c["method"], int(c["ratio"]), c["seed"]) for c in cells}
    wanted = [(m, r, s) for m in METHODS for r in RATIOS for s in SEEDS]
    missing = [f"{m} {r}x seed {s}" for m, r, s in wanted if (m, r, s) not in present]
    note = f"Missing cells: {', '.join(missing)}." if missing else "All cells are there."
    about = "Mean (smallest to largest) over seeds, n of them; seconds are medians on one shared core."
    return "\n".join([*lines, "", f"{about} {note}"])


def ablation(folder: Path = RESULTS / "ablation") -> str:
    """Row x task and ratio: mean and range of the metric on held-out training rows, and the difference to `default`; range of
    bytes before repair; seconds."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    for cell in cells:
        for key in ("teacher_sha256", "data_sha256"):
            alike = [c for c in cells if (c["task"], c["scored"]) == (cell["task"], cell["scored"])]
            if any(c[key] != cell[key] for c in alike):
                raise SystemExit(f"The ablation's cells of {cell['task']} differ in {key}: measure the older ones again.")
    measured = [cell for cell in cells if cell["scored"] == "train" and cell["row"] in ROWS]
    for name in {cell["row"] for cell in measured}:
        recipes = [from_mapping(Recipe, cell["recipe"], "cell") for cell in measured if cell["row"] == name]
        if any(recipe != recipes[0] for recipe in recipes):
            raise SystemExit(f"The ablation's cells of row {name} differ in recipe: measure the older ones again.")
    columns = sorted(_main_columns(measured), key=lambda column: (column[0] != "sst2", *column))
    everything, measured = measured, [cell for cell in measured if _column(cell) in columns]  # seconds too are of one precision
    heads = [f"{_column_name(column)} | minus default" for column in columns]
    lines = [f"| | {' | '.join(heads)} | before repair | search s | recovery s |", f"|---{'|---' * (2 * len(columns) + 3)}|"]
    missing: list[str] = []
    for name, row in ROWS.items():
        own = [cell for cell in measured if cell["row"] == name]
        if not own:
            missing += [name] if name not in {cell["row"] for cell in everything} else []
            continue
        values = [_against([c for c in measured if _column(c) == column], name) for column in columns]
        off = [c["derived_bytes"] / c["budget_bytes"] - 1 for c in own if c["derived_bytes"]]
        timed = [c for c in own if c["device"] == "cpu"]  # seconds of two kinds of machine do not compare
        spent = [f"{np.median([c['seconds'][k] for c in timed]):.0f}" if timed else "" for k in ("search", "recover")]
        error = " to ".join(f"{100 * share:+.1f} %" for share in sorted({min(off), max(off)})) if off else ""
        lines.append(f"| {row.about} | {' | '.join(values)} | {error} | {' | '.join(spent)} |")
    full = {f"{c['task']} {100 * c['full_precision'][c['metric']]:.2f}" for c in measured}
    devices = Counter(cell["device"] for cell in measured)
    notes = [f"Full precision: {', '.join(sorted(full))}. Seconds: one busy CPU core. Cells by device:"]
    notes[0] += f" {', '.join(f'{device} {count}' for device, count in sorted(devices.items()))}."
    notes += [f"No cells yet of the rows {', '.join(missing)}."] if missing else []
    notes += [*_twins(everything), *_without_twins(everything)]
    return "\n".join([*lines, "", *notes, *_ranks(cells), *_stability(measured)])


def _column(cell: dict[str, Any]) -> tuple[str, float, str]:
    return cell["task"], cell["ratio"], cell.get("precision", "fp32")


def _main_columns(cells: list[dict[str, Any]]) -> set[tuple[str, float, str]]:
    """Of every task and ratio the precision that most cells have."""
    counts, best = Counter(map(_column, cells)), dict[tuple[str, float], tuple[str, float, str]]()
    for column, _ in reversed(counts.most_common()):
        best[column[:2]] = column
    return set(best.values())


def _twins(cells: list[dict[str, Any]]) -> list[str]:
    """What cells of another precision than their column's differ from the same cell in that, points."""
    main, lines = _main_columns(cells), []
    for cell in cells:
        alike = [c for c in cells if (c["row"], c["seed"], *_column(c)[:2]) == (cell["row"], cell["seed"], *_column(cell)[:2])]
        twins = [c for c in alike if _column(c) in main]
        if _column(cell) in main or not twins:
            continue
        difference = 100 * (cell["metrics"][cell["metric"]] - twins[0]["metrics"][cell["metric"]])
        lines.append(f"{cell['row']} at {_column_name(_column(cell))} {difference:+.2f}")
    return [f"Cells of another precision, against their twins: {'; '.join(lines)}."] if lines else []


def _without_twins(cells: list[dict[str, Any]]) -> list[str]:
    """Cells of another precision than their column's that the column lacks, beside `default` in their own."""
    main, lines = _main_columns(cells), []
    known = {(cell["row"], *_column(cell)[:2]) for cell in cells if _column(cell) in main}
    alone = [cell for cell in cells if (cell["row"], *_column(cell)[:2]) not in known]
    for row, column in sorted({(cell["row"], _column(cell)) for cell in alone}):
        own = [c for c in cells if _column(c) == column]
        value, difference = _against(own, row).split(" |")
        paired = {c["seed"] for c in own if c["row"] == row} & {c["seed"] for c in own if c["row"] == "default"}
        beside = f", minus default{difference} (n={len(paired)})" if difference else ""
        lines.append(f"{ROWS[row].about} at {_column_name(column)} {value}{beside}")
    return [f"Only in another precision: {'; '.join(lines)}."] if lines else []


def _column_name(column: tuple[str, float, str]) -> str:
    task, ratio, precision = column
    return f"{task} {ratio:g}x" + ("" if precision == "fp32" else f", {precision}")


def _against(cells: list[dict[str, Any]], name: str) -> str:
    """A row's metric, and its difference to `default` over the seeds that both have: two columns of one task and ratio."""
    own, default = ({c["seed"]: c for c in cells if c["row"] == row} for row in (name, "default"))
    value, seeds = _spread(list(own.values())), sorted(set(own) & set(default))
    if name == "default" or not seeds or any("answers" not in side[seed] for side in (own, default) for seed in seeds):
        return f"{value} |"
    ours, theirs = (np.array([side[seed]["answers"] for seed in seeds]) for side in (own, default))
    metric, labels = own[seeds[0]]["metric"], np.array(own[seeds[0]]["labels"])
    return f"{value} | {difference_text(paired_difference(metric, ours, theirs, labels))}"


def _spread(cells: list[dict[str, Any]]) -> str:
    values = [100 * cell["metrics"][cell["metric"]] for cell in cells]
    if not values:
        return "missing"
    return f"{np.mean(values):.2f}" + (f" ({min(values):.2f} to {max(values):.2f}, n={len(values)})" if len(values) > 1 else "")


def _ranks(cells: list[dict[str, Any]]) -> list[str]:
    """Spearman's correlation of the supernet's loss with the recovered metric, over random allocations of one size."""
    lines = []
    random = [cell for cell in cells if "supernet_loss" in cell]
    for column in sorted(set(map(_column, random))):
        own = [cell for cell in random if _column(cell) == column]
        found = spearmanr([-c["supernet_loss"] for c in own], [c["metrics"][c["metric"]] for c in own])
        about = f"Over {len(own)} random allocations of {_column_name(column)} the searched supernet's held-out loss"
        found_text = f"a rank correlation of {found.statistic:.2f} (p = {found.pvalue:.2f})"
        lines.append(f"{about} and the recovered metric have {found_text}.")
    return lines


def _stability(cells: list[dict[str, Any]]) -> list[str]:
    """How many sub-groups get the same bits under another seed."""
    lines = []
    default = [cell for cell in cells if cell["row"] == "default"]
    for column in sorted(set(map(_column, default))):
        own = [c["allocation"] for c in default if _column(c) == column]
        shares = [_share_alike(a, b) for a, b in itertools.combinations(own, 2)]
        if shares:
            share = f"Of {_column_name(column)}, {np.mean(shares):.0%}"
            lines.append(f"{share} of the sub-groups get the same bits under another seed.")
    return lines


def _share_alike(one: dict[str, Any], other: dict[str, Any]) -> float:
    first, second = BitAllocation.from_json(one).bits, BitAllocation.from_json(other).bits
    pairs = [(a, b) for name in first for a, b in zip(first[name], second[name], strict=False)]
    return sum(a == b for a, b in pairs) / len(pairs)


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "missing"
    return f"{rows.value.mean():.2f} ({rows.value.min():.2f} to {rows.value.max():.2f}, n={len(rows)})"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    tables = {"allocations": allocations()}
    if any((RESULTS / "ablation").glob("*.json")):
        tables["ablation"] = ablation()
    tables["ablation-drawn-labels"] = ablation(RESULTS / "ablation-drawn-labels")
    tables |= {"compare": compare_table(), "peers-linear": linears_table(), "peers-whole": whole_table()}
    tables["papers"] = paper_tables(known_cells(default_backbone().name), measured_only=True)
    tables |= {"deployment": deployment_table(), "mrem": mrem_table(), "mrem-settings": mrem_settings_table()}
    if options.write:
        plot_mrem()
    for name, table in tables.items():
        print(table)
        if options.write:
            readme = ROOT / "README.md"
            pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- /table -->)", re.DOTALL)
            text, found = pattern.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", readme.read_text("utf-8"))
            if found != 1:
                raise SystemExit(f"README.md has {found} places for the table '{name}'.")
            readme.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
