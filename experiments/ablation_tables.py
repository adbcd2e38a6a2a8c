"""The table of experiments/ablation.py's cells; `python experiments/tables.py` puts it into a README."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ablation import FULL, RANKED
from ablation_rows import ROWS
from scipy.stats import spearmanr

from autoquant.compare.bootstrap import paired_difference
from autoquant.compare.table import difference_text, points
from autoquant.core.allocation import BitAllocation
from autoquant.core.settings import Recipe, from_mapping
from autoquant.tasks.metrics import answers, score

RESULTS = Path(__file__).parent / "results" / "ablation"
CHANGES = {
    "groups": (
        ("dnas", "groups-1"),
        ("dnas", "heads-subgroup"),
        ("dnas", "groups-128"),
        ("dnas", "groups-rows"),
        ("search", "search-groups-128"),
        ("search", "search-groups-rows"),
    ),
    "default": (
        ("dnas", "groups-neurons"),
        ("search", "search-groups-neurons"),
        ("groups-neurons", "groups-neurons-subgroup"),
    ),
    "recovery": (
        ("dnas", "longer"),
        ("dnas", "long-recovery"),
        ("uniform", "longer-uniform"),
    ),
    "texts": (
        ("dnas", "texts"),
        ("longer", "texts"),
        ("long-recovery", "texts"),
        ("uniform", "texts-uniform"),
        ("texts-uniform", "texts"),
    ),
    "exchange": (
        ("dnas", "exchange"),
        ("uniform", "exchange-uniform"),
        ("search", "exchange-search"),
        ("search-floor", "exchange-search-floor"),
    ),
    "annealed": (("dnas", "annealed"),),
}
"""Tables of pairs of rows: one, and with a change."""
FORETOLD = {
    "supernet_loss": "held-out loss in the searched supernet",
    "untrained_loss": "held-out loss before any training",
    "summed": "sum of its sensitivities",
}
"""What is known of an allocation before recovery."""
OTHER = "†"  # marks a value in another precision or under another teacher than its column's

Cells = list[dict[str, Any]]
Column = tuple[str, float, str, str]
"""Task, ratio, precision, and the start of the teacher's hash."""


def ablation_table(folder: Path = RESULTS) -> str:
    """Row x task and ratio: mean and range of the metric on held-out training rows, the difference to `dnas`, and how many
    answers are the teacher's; range of bytes before repair; seconds."""
    cells = read_cells(folder)
    if not cells:
        return "No cells yet: run `python experiments/ablation.py --data-dir glue`."
    check_alike(cells)
    measured = [cell for cell in cells if cell["scored"] == "train" and cell["row"] in ROWS]
    columns = main_columns(measured)
    heads = [f"{_column_name(column)} | minus dnas | as teacher" for column in columns]
    lines = [f"| | {' | '.join(heads)} | before repair | search s | recovery s |", f"|---{'|---' * (3 * len(columns) + 3)}|"]
    for name in ROWS:
        shown = [shown_cells(measured, name, column) for column in columns]
        if any(shown):
            values = [_value(own, measured, column, folder) for own, column in zip(shown, columns, strict=True)]
            lines.append(f"| {ROWS[name].about} | {' | '.join(values)} | {_costs(list(itertools.chain(*shown)))} |")
    return "\n".join([*lines, "", *_notes(measured, folder), *_stability(measured)])


def changes_table(name: str, folder: Path = RESULTS) -> str:
    """The pairs of CHANGES[name] by task and ratio, dev sets last: the metric of either and the difference, that of the share of
    answers that are the teacher's, and how far the answers are from its (nats, of a regression half a squared error)."""
    cells = read_cells(folder)
    heads = ["", "row", "changed row", "full precision", "row", "changed row"]
    heads += ["difference", "as teacher: difference", "from the teacher"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    kinds = sorted({(_column(cell), cell["scored"]) for cell in cells}, key=lambda kind: (kind[1] == "dev", kind[0]))
    for (column, scored), rows in itertools.product(kinds, CHANGES[name]):
        alike = [cell for cell in cells if (_column(cell), cell["scored"]) == (column, scored)]
        sides = [[cell for cell in alike if cell["row"] == row] for row in rows]
        if all(sides):
            metric, taught = sides[0][0]["metric"], teacher_answers(sides[0][0], folder)
            about = f"{_column_name(column)}{' dev' if scored == 'dev' else ''} ({metric})"
            columns = [about, *(ROWS[row].about for row in rows), points(sides[0][0]["full_precision"][metric])]
            columns += [*map(_spread, sides), _difference(sides[1], sides[0])]
            columns += ["" if taught is None else _difference(sides[1], sides[0], taught), _distances(sides)]
            lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def _distances(sides: Sequence[Cells]) -> str:
    """Mean of either side, over the seeds for which it was measured on both."""
    known = [{cell["seed"]: cell["divergence"] for cell in side if "divergence" in cell} for side in sides]
    seeds = set.intersection(*map(set, known))
    return " to ".join(f"{np.mean([side[seed] for seed in seeds]):.3f}" for side in known) if seeds else ""


def changed_answers_table(folder: Path = RESULTS) -> str:
    """Answers that are not the teacher's, by the way they went, at 15x and 25x of SST-2.

    A model that answers "negative" more often gains accuracy where the teacher does so too seldom, and is no closer to it. The
    last column takes that out.
    """
    heads = ("", "n", "to positive", "right", "to negative", "right", "minus full precision", "if as many went either way")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    measured = [cell for cell in read_cells(folder) if (cell["task"], cell["scored"]) == ("sst2", "train")]
    for ratio, row in itertools.product((15, 25), ("uniform", "dnas", "search", "search-floor")):
        cells = [c for c in measured if (c["ratio"], c["row"]) == (ratio, row) and teacher_answers(c, folder) is not None]
        if cells:
            ways = np.mean([_changed(cell, folder) for cell in cells], axis=0)
            (up, down), right = ways.sum(axis=1), ways[:, 1] / ways.sum(axis=1)
            texts = 100 / len(cells[0]["labels"])
            lost, even = (texts * float(np.dot(counts, 2 * right - 1)) for counts in ((up, down), [(up + down) / 2] * 2))
            counts = f"{up:.0f} | {right[0]:.0%} | {down:.0f} | {right[1]:.0%}"
            lines.append(f"| {ratio}x, {ROWS[row].about} | {len(cells)} | {counts} | {lost:+.2f} | {even:+.2f} |")
    known = [answers for cell in measured if (answers := teacher_answers(cell, folder)) is not None]
    if known:
        taught, labels = 100 * np.mean(known), 100 * np.mean([cell["labels"] for cell in measured])
        lines += ["", f"Full precision answers positive to {taught:.1f} % of the phrases; {labels:.1f} % are."]
    return "\n".join(lines)


def _changed(cell: dict[str, Any], folder: Path) -> np.ndarray:
    """How many answers are not the teacher's: [to 1 and to 0, wrong and right], [2, 2]."""
    ours, labels, theirs = np.array(cell["answers"]), np.array(cell["labels"]), teacher_answers(cell, folder)
    ways = [(ours == way) & (theirs != way) for way in (1, 0)]
    return np.array([[(changed & (labels != ours)).sum(), (changed & (labels == ours)).sum()] for changed in ways])


def read_cells(folder: Path) -> Cells:
    """Of every teacher."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/*.json"))]


def check_alike(cells: Cells) -> None:
    """Raise SystemExit for cells of other data or recipes than those beside them."""
    for cell in cells:
        alike = [c for c in cells if (c["task"], c["scored"]) == (cell["task"], cell["scored"])]
        if any(c["data_sha256"] != cell["data_sha256"] for c in alike):
            raise SystemExit(f"The ablation's cells of {cell['task']} differ in data: measure the older ones again.")
    for name in {cell["row"] for cell in cells} & set(ROWS):
        recipes = [from_mapping(Recipe, cell["recipe"], "cell") for cell in cells if cell["row"] == name]
        if any(recipe != recipes[0] for recipe in recipes):
            raise SystemExit(f"The ablation's cells of row {name} differ in recipe: measure the older ones again.")


def _column(cell: dict[str, Any]) -> Column:
    return cell["task"], cell["ratio"], cell.get("precision", "fp32"), cell["teacher_sha256"][:8]


def main_columns(cells: Cells) -> list[Column]:
    """Every task and ratio with the precision and teacher of most cells of `dnas`, or of most of all cells; SST-2 first."""
    reference, best = Counter(_column(c) for c in cells if c["row"] == "dnas"), dict[tuple[str, float], Column]()
    for column, _ in sorted(Counter(map(_column, cells)).items(), key=lambda item: (reference[item[0]], item[1])):
        best[column[:2]] = column
    return sorted(best.values(), key=lambda column: (column[0] != "sst2", *column))


def shown_cells(cells: Cells, name: str, column: Column) -> Cells:
    """A row's cells of the column's precision and teacher, or where there are none of those that most of its cells have."""
    own = [cell for cell in cells if cell["row"] == name and _column(cell)[:2] == column[:2]]
    kinds = Counter(map(_column, own))
    best = column if column in kinds else max(kinds, key=lambda kind: kinds[kind], default=column)
    return [cell for cell in own if _column(cell) == best]


def _value(own: Cells, cells: Cells, column: Column, folder: Path) -> str:
    """The metric, its difference to `dnas` in the same precision and under the same teacher, and how many answers are the
    teacher's: three columns."""
    if not own:
        return "missing | |"
    reference = [cell for cell in cells if cell["row"] == "dnas" and _column(cell) == _column(own[0])]
    mark = "" if _column(own[0]) == column else OTHER
    return f"{_spread(own)}{mark} | {_difference(own, reference)} | {_agreement(own, folder)}"


def _agreement(own: Cells, folder: Path) -> str:
    """Answers that are the teacher's too, in percent: mean and range; nothing where the teacher's are not known."""
    pairs = [(np.array(cell.get("answers", [])), teacher_answers(cell, folder)) for cell in own]
    shares = [100 * np.mean(ours == theirs) for ours, theirs in pairs if theirs is not None]
    spread = f" ({min(shares):.2f} to {max(shares):.2f})" if len(shares) > 1 else ""
    return f"{np.mean(shares):.2f}{spread}" if shares else ""


def _full_file(folder: Path, cell: dict[str, Any]) -> Path:
    return folder / cell["teacher_sha256"][:8] / f"{cell['task']}-{cell['scored']}{FULL}"


def teacher_answers(cell: dict[str, Any], folder: Path) -> np.ndarray | None:
    """Those of the cell's teacher, or where they were not kept of one that has all of its metrics; None in a regression."""
    own = _full_file(folder, cell)
    for file in sorted(folder.glob(f"*/{own.name}"), key=lambda file: file != own):
        logits, labels = np.load(file), np.array(cell["labels"])
        alike = len(logits) == len(labels) and score(tuple(cell["metrics"]), logits, labels) == cell["full_precision"]
        if "answers" in cell and logits.shape[1] > 1 and (file == own or alike):
            return answers(logits)
    return None


def _costs(own: Cells) -> str:
    """Bytes before repair, and seconds of search and recovery: three columns."""
    off = [c["derived_bytes"] / c["budget_bytes"] - 1 for c in own if c["derived_bytes"]]
    timed = [c for c in own if c["device"] == "cpu"]  # seconds of two kinds of machine do not compare
    spent = [f"{np.median([c['seconds'][k] for c in timed]):.0f}" if timed else "" for k in ("search", "recover")]
    return f"{' to '.join(f'{100 * s:+.1f} %' for s in sorted({min(off), max(off)})) if off else ''} | {' | '.join(spent)}"


def _notes(measured: Cells, folder: Path) -> list[str]:
    full = {f"{c['task']} {100 * c['full_precision'][c['metric']]:.2f}" for c in measured}
    devices = Counter(cell["device"] for cell in measured)
    counted = ", ".join(f"{device} {count}" for device, count in sorted(devices.items()))
    missing = [name for name in ROWS if name not in {cell["row"] for cell in measured}]
    notes = [f"Full precision: {', '.join(sorted(full))}. Seconds: medians on one busy CPU core. Cells by device: {counted}."]
    about = "in the other precision (bf16 or float32 products) or under another teacher, as is the `dnas` beside it"
    notes += [f"{OTHER} Trained {about}."]
    notes += ["As teacher: percent of the answers that are full precision's."]
    silent = {c["teacher_sha256"][:8] for c in measured if not _full_file(folder, c).exists()}
    if silent:
        notes[-1] += f" Those of {', '.join(sorted(silent))} were not kept: a teacher with all of its metrics stands in for it."
    teachers = sorted(Counter(f"{c['task']} {c['teacher_sha256'][:8]}" for c in measured).items())
    if len(teachers) > len({c["task"] for c in measured}):
        notes.append(f"Cells by teacher: {', '.join(f'{name} {count}' for name, count in teachers)}.")
    notes += [f"No cells yet of the rows {', '.join(missing)}."] if missing else []
    twins = twin_differences(measured)
    if twins:
        notes.append(f"Cells in both precisions: bf16 minus float32 {min(twins):+.2f} to {max(twins):+.2f} ({len(twins)} pairs).")
    return notes


def twin_differences(cells: Cells) -> list[float]:
    """bf16 minus float32, points, of every cell that is there in both."""
    metric = {(cell["row"], cell["seed"], *_column(cell)): 100 * cell["metrics"][cell["metric"]] for cell in cells}
    rounded = {key: (*key[:4], "bf16", key[5]) for key in metric if key[4] == "fp32"}
    return [metric[twin] - metric[key] for key, twin in rounded.items() if twin in metric]


def _column_name(column: Column) -> str:
    task, ratio, precision, _ = column
    return f"{task} {ratio:g}x" + ("" if precision == "fp32" else f", {precision}")


def _difference(own: Cells, reference: Cells, taught: np.ndarray | None = None) -> str:
    """To `dnas`, over the seeds that both have; nothing for `dnas` itself. `taught` [texts]: answers to agree with, instead
    of the metric."""
    ours, theirs = ({cell["seed"]: cell for cell in side} for side in (own, reference))
    seeds = sorted(set(ours) & set(theirs))
    if own[0]["row"] == "dnas" or not seeds or any("answers" not in side[seed] for side in (ours, theirs) for seed in seeds):
        return ""
    given = [np.array([side[seed]["answers"] for seed in seeds]) for side in (ours, theirs)]
    if taught is not None:
        return difference_text(paired_difference("accuracy", *given, taught))
    return difference_text(paired_difference(own[0]["metric"], *given, np.array(own[0]["labels"])))


def _spread(cells: Cells) -> str:
    values = [100 * cell["metrics"][cell["metric"]] for cell in cells]
    return f"{np.mean(values):.2f}" + (f" ({min(values):.2f} to {max(values):.2f}, n={len(values)})" if len(values) > 1 else "")


def foretold_table(folder: Path = RESULTS) -> str:
    """Spearman's correlations of what is known before recovery with what comes out of it, over random allocations of one size.

    Positive where less of a loss goes with a better outcome. The metric has the most chance in it, the distance the least.
    """
    lines = ["| | n | metric | answers as the teacher's | near the teacher |", "|---|---|---|---|---|"]
    random, notes = [cell for cell in read_cells(folder) if cell["row"] in RANKED], []
    for column in sorted(set(map(_column, random))):
        own = [cell for cell in random if _column(cell) == column]
        metrics = [cell["metrics"][cell["metric"]] for cell in own]
        shares = [np.mean(np.array(cell["answers"]) == teacher_answers(cell, folder)) for cell in own]
        near = [-cell["divergence"] for cell in own]
        for key, about in FORETOLD.items():
            found = [spearmanr([-cell[key] for cell in own], outcome) for outcome in (metrics, shares, near)]
            values = " | ".join(f"{result.statistic:.2f} (p = {result.pvalue:.1g})" for result in found)
            lines.append(f"| {_column_name(column)}: {about} | {len(own)} | {values} |")
        ranges = [f"{100 * min(values):.1f} to {100 * max(values):.1f} %" for values in (metrics, shares)]
        away = f"{-max(near):.3f} to {-min(near):.3f} nats from the teacher"
        notes.append(f"{_column_name(column)}: {own[0]['metric']} {ranges[0]}, as teacher {ranges[1]}, {away}.")
    return "\n".join([*lines, "", *notes])


def _stability(cells: Cells) -> list[str]:
    """How many sub-groups get the same bits under another seed."""
    lines = []
    reference = [cell for cell in cells if cell["row"] == "dnas"]
    for column in sorted(set(map(_column, reference))):
        own = [c["allocation"] for c in reference if _column(c) == column]
        shares = [_share_alike(a, b) for a, b in itertools.combinations(own, 2)]
        if shares:
            share = f"Of {_column_name(column)}, {np.mean(shares):.0%}"
            lines.append(f"{share} of the sub-groups get the same bits under another seed.")
    return lines


def _share_alike(one: dict[str, Any], other: dict[str, Any]) -> float:
    first, second = BitAllocation.from_json(one).bits, BitAllocation.from_json(other).bits
    pairs = [(a, b) for name in first for a, b in zip(first[name], second[name], strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)
