"""The table of experiments/ablation.py's cells; `python experiments/tables.py` puts it into a README."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from ablation import ROWS
from scipy.stats import spearmanr

from autoquant.compare.bootstrap import paired_difference
from autoquant.compare.table import difference_text
from autoquant.core.allocation import BitAllocation
from autoquant.core.settings import Recipe, from_mapping

RESULTS = Path(__file__).parent / "results" / "ablation"


def ablation_table(folder: Path = RESULTS) -> str:
    """Row x task and ratio: mean and range of the metric on held-out training rows, and the difference to `default`; range of
    bytes before repair; seconds."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not cells:
        return "No cells yet: run `python experiments/ablation.py --data-dir glue`."
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
