"""The tables and the plot of experiments/mrem.py's cells; `python experiments/tables.py` puts them into a README."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

RESULTS = Path(__file__).parent / "results" / "mrem"
SEEDS = 3
METHODS = {
    "none": "no reconstruction",
    "layer-wise": "layer-wise reconstruction",
    "mrem-s": "MREM-S",
    "mrem-p": "MREM-P",
    "retrain": "retraining (distillation)",
}
PLACES = [(task, allocation) for task in ("sst2", "mrpc") for allocation in ("2-2-8", "searched")]


def mrem_cells() -> pd.DataFrame:
    """Every cell of experiments/mrem.py, empty if there is none.

    Refuses cells whose teacher or data differ within a task, or whose bits differ within an allocation.
    """
    cells = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    for key in ("teacher_sha256", "data_sha256"):
        for task in {cell["task"] for cell in cells}:
            if len({json.dumps(cell[key], sort_keys=True) for cell in cells if cell["task"] == task}) > 1:
                raise SystemExit(f"The MREM cells of {task} differ in {key}: a table must not mix them.")
    for place in PLACES:
        own = [cell for cell in cells if (cell["task"], cell["allocation"]) == place]
        if len({cell["allocation_sha256"] for cell in own if "allocation_sha256" in cell}) > 1:  # the first cells say nothing
            raise SystemExit(f"The MREM cells of {' '.join(place)} have different bits: a table must not mix them.")
    plain = ("threads", "device", "task", "allocation", "method", "steps", "seed", "modules", "samples", "forcing")
    rows = []
    for cell in cells:
        values = {"value": 100 * cell["metrics"][cell["metric"]], "full": 100 * cell["full_precision"][cell["metric"]]}
        costs = {"seconds": cell["seconds"], "mib": cell["peak_mib"]}
        if cell["device"] != "cpu":  # seconds and memory of two kinds of machine do not compare
            costs = dict.fromkeys(costs, float("nan"))
        rows.append({**{name: cell[name] for name in plain}, **values, **costs})
    return pd.DataFrame(rows, columns=[*plain, "value", "full", "seconds", "mib"])


def _usual(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells of the main comparison: 500 steps a module, four modules, 4,096 texts, annealed teacher forcing."""
    settings = (cells.modules == 4) & (cells.samples == 4096) & (cells.forcing == "linear")
    steps = cells.method.map({"none": 0, "retrain": 400}).fillna(500)
    return cells[settings & (cells.steps == steps)]


def mrem_table() -> str:
    """Method x (task, allocation): mean and range over seeds; then seconds and memory of each."""
    cells = _usual(mrem_cells())
    if cells.empty:
        return "No cells yet: run `python experiments/mrem.py --data-dir glue`."
    heads = [f"{ {'sst2': 'SST-2', 'mrpc': 'MRPC'}[task] } {allocation}" for task, allocation in PLACES]
    head = [f"| method | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    places = [cells[(cells.task == task) & (cells.allocation == allocation)] for task, allocation in PLACES]
    full = [f"{rows.full.iloc[0]:.2f}" if len(rows) else "" for rows in places]
    lines = [*head, f"| full precision | {' | '.join(full)} |"]
    costs = list(head)
    for name, label in METHODS.items():
        own = [rows[rows.method == name] for rows in places]
        lines.append(f"| {label} | {' | '.join(map(_spread, own))} |")
        if name != "none":
            costs.append(f"| {label} | {' | '.join(map(_cost, own))} |")
    missing = len(METHODS) * len(PLACES) * SEEDS - len(cells)
    note = f"{missing} cells are missing." if missing else "All cells are there."
    elsewhere = cells[cells.device != "cpu"]
    if len(elsewhere):
        note += f" {len(elsewhere)} cells ({', '.join(sorted({METHODS[name] for name in elsewhere.method}))}) are from a GPU."
    threads = "/".join(map(str, sorted(set(cells.threads))))
    about = "500 steps a module, or a layer, on at most 4,096 texts; retraining 400 of the whole network."
    spent = f"Median seconds and peak memory on a CPU: one process with {threads} thread, MREM-P four of them on two cores."
    return "\n".join([*lines, "", f"Mean (smallest to largest, n seeds). {about} {note}", "", *costs, "", spent])


def mrem_settings_table() -> str:
    """SST-2 at 2-2-8, MREM-S, seed 0: what teacher forcing, the number of modules and of calibration texts do."""
    cells = mrem_cells()
    cells = cells[(cells.task == "sst2") & (cells.allocation == "2-2-8") & (cells.method == "mrem-s") & (cells.seed == 0)]
    if cells.empty:
        return "No cells yet."
    rows = [(f"teacher forcing {f}, {s} steps", {"forcing": f, "steps": s}) for s in (250, 2000) for f in ("linear", "off")]
    rows += [(f"{count} module{'s' * (count > 1)}", {"modules": count}) for count in (1, 2, 3, 4, 6)]
    rows += [(f"{count:,} texts", {"samples": count}) for count in (256, 512, 1024, 2048, 4096)]
    lines = ["| MREM-S, SST-2, 2-2-8 | accuracy | seconds |", "|---|---|---|"]
    for label, changes in rows:
        wanted = {"steps": 500, "modules": 4, "samples": 4096, "forcing": "linear", **changes}
        found = cells[(cells[list(wanted)] == pd.Series(wanted)).all(axis=1)]
        texts = (f"{found.value.iloc[0]:.2f}", _whole(found.seconds)) if len(found) else ("missing", "")
        lines.append(f"| {label} | {' | '.join(texts)} |")
    return "\n".join([*lines, "", "One seed; 500 steps a module, four modules, 4,096 texts and annealed forcing unless said."])


def plot_mrem() -> None:
    """results/mrem/curve.png: accuracy against seconds of MREM-S and retraining, SST-2 at 2-2-8."""
    cells = mrem_cells()
    cells = cells[(cells.task == "sst2") & (cells.allocation == "2-2-8") & (cells.seed == 0)]
    cells = cells[(cells.modules == 4) & (cells.samples == 4096) & (cells.forcing == "linear")]
    cells = cells[cells.seconds.notna() & cells.method.isin(["mrem-s", "retrain"])]
    if len(cells) < 3:  # no curve yet
        return
    figure = go.Figure(layout={"title": "SST-2, 2-2-8, one seed", "template": "plotly_white"})
    for name in ("mrem-s", "retrain"):
        rows = cells[cells.method == name].sort_values("seconds")
        figure.add_scatter(x=rows.seconds, y=rows.value, mode="lines+markers", name=METHODS[name])
    figure.add_hline(y=cells.full.iloc[0], line_dash="dot", annotation_text="full precision")
    figure.update_xaxes(type="log", title="seconds of refinement", tickvals=[25 * 2**n for n in range(8)])
    figure.update_yaxes(title="accuracy of the packed file (%)")
    figure.write_image(RESULTS / "curve.png", width=900, height=440, scale=2)


def _whole(numbers: pd.Series) -> str:
    """Their median, without decimals; nothing where none was measured on a CPU."""
    return f"{numbers.median():.0f}" if numbers.notna().any() else ""


def _cost(rows: pd.DataFrame) -> str:
    return f"{_whole(rows.seconds)} s, {_whole(rows.mib)} MiB" if rows.seconds.notna().any() else "missing"


def _spread(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "missing"
    return f"{rows.value.mean():.2f} ({rows.value.min():.2f} to {rows.value.max():.2f}, n={len(rows)})"
