"""Make the README's result tables from the measured cells; says which cells are missing.

    python experiments/tables.py            # print
    python experiments/tables.py --write    # put them into README.md between its markers
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

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


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "missing"
    return f"{rows.value.mean():.2f} ({rows.value.min():.2f} to {rows.value.max():.2f}, n={len(rows)})"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    tables = {"allocations": allocations()}
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
