"""Accuracy against the size of the file, of every method, recipe and tool: results/compare.png, for the README."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import plotly.graph_objects as go

from autoquant.compare.cells import read_cells
from autoquant.compare.table import Summary, full_precision, summarise
from autoquant.core.cost import MIB
from compare import CELLS, RESULTS

TASK, LOWEST = "sst2", 0.76  # what lies lower is left out: the tables have it
LINES = {"dnas": "autoquant dnas", "uniform": "uniform bits"}


def plot_compare() -> None:
    """Means over seeds; nothing is drawn before there are cells of both lines."""
    cells, peers = ([cell for cell in read_cells(at) if cell.task == TASK] for at in (CELLS, RESULTS / "peers"))
    rows, tools = summarise(cells), summarise(peers)
    if not set(LINES) <= {row.method for row in rows}:
        return
    figure = go.Figure(layout={"template": "plotly_white", "title": "SST-2, default backbone: accuracy of the packed files"})
    for name, label in LINES.items():
        own = _points(row for row in rows if row.method == name)
        figure.add_scatter(**own, mode="lines+markers", name=label, line_width=3)
    groups = {
        "other ways to choose bits": [row for row in rows if not row.own_size and row.method not in LINES],
        "recipes of the papers": [row for row in rows if row.own_size],
        "other tools (recounted)": tools,
    }
    for (label, some), symbol in zip(groups.items(), ("circle-open", "square", "diamond"), strict=True):
        figure.add_scatter(**_named(_points(some)), mode="markers+text", name=label, marker={"symbol": symbol, "size": 9})
    full = {"annotation_text": "full precision, 87 MiB", "annotation_position": "top left", "annotation_font_size": 10}
    figure.add_hline(y=100 * full_precision(cells).full_precision, line_dash="dot", **full)
    figure.update_traces(textfont_size=9)
    ticks, ends = [3, 4, 6, 8, 12, 16, 24, 32], np.log10([2.7, 42]).tolist()
    figure.update_xaxes(type="log", title="MiB of the file", tickvals=ticks, range=ends)
    figure.update_yaxes(title="accuracy (%)", range=[100 * LOWEST, 87.5])
    figure.update_layout(legend={"orientation": "h", "y": -0.2})
    figure.write_image(RESULTS / "compare.png", width=1100, height=620, scale=2)


def _points(rows: Iterable[Summary]) -> dict[str, Any]:
    """A point a method and budget, smallest first."""
    shown = sorted((row for row in rows if row.mean >= LOWEST), key=lambda row: row.file_bytes)
    sizes, metrics = [row.file_bytes / MIB for row in shown], [100 * row.mean for row in shown]
    return {"x": sizes, "y": metrics, "text": [row.method for row in shown]}


def _named(points: dict[str, Any]) -> dict[str, Any]:
    """With every point's name to its right, to its left where the next one above has its own there, nowhere in a crowd."""
    taken, places = list[tuple[float, float, int]](), []
    for x, y, text in sorted(zip(points["x"], points["y"], points["text"], strict=True), key=lambda at: (-at[1], -at[0])):
        free = [side for side in (1, -1) if not any(_near((x, y), other) and side == other[2] for other in taken)]
        taken += [(x, y, side) for side in free[:1]]
        places.append(((x, y), "middle left" if free[:1] == [-1] else "middle right", text if free else ""))
    x, y = zip(*(at for at, _, _ in places), strict=True)
    return {"x": x, "y": y, "text": [text for *_, text in places], "textposition": [side for _, side, _ in places]}


def _near(one: tuple[float, float], other: tuple[float, float, int]) -> bool:
    return abs(np.log(one[0] / other[0])) < 0.2 and abs(one[1] - other[1]) < 0.28


if __name__ == "__main__":
    plot_compare()
