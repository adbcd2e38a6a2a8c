"""What happened on the way? Curves of a run's log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autoquant.core.cost import MIB
from autoquant.reports.plots.look import styled

LogLine = Mapping[str, Any]
MOST_POINTS = 600  # a trace; more than a screen has columns for
SMOOTHING = 0.06  # share of a new value in the running mean


def training_curves(log: Sequence[LogLine], budget_bytes: int | None = None) -> go.Figure:
    """Losses of every stage, temperature, and the expected size against the budget, from a run's metrics.jsonl."""
    stages = list(dict.fromkeys(line["stage"] for line in log))
    teacher = [s for s in stages if s in ("teacher", "student")]
    search = [s for s in stages if s.startswith("search-")]
    recover = [s for s in stages if s not in (*teacher, *search)]  # named after their refiner
    panels: list[tuple[str, list[str], tuple[str, ...]]] = [
        ("teacher loss", teacher, ("loss",)),
        ("search: losses", search, ("loss", "held_out_loss")),
        ("search: expected size in MiB", search, ("expected_bytes",)),
        ("search: temperature", search, ("temperature",)),
        ("recovery: loss", recover, ("loss",)),
    ]
    shown = [panel for panel in panels if _has(log, *panel[1:])]
    rows = max(1, (len(shown) + 1) // 2)
    figure = make_subplots(rows, 2, subplot_titles=[title for title, _, _ in shown], vertical_spacing=0.36 / rows)
    index = 0
    for place, (title, names, keys) in enumerate(shown):
        row, column = place // 2 + 1, place % 2 + 1
        for stage in names:
            for key in keys:
                for trace in _curve(log, stage, key, index):
                    figure.add_trace(trace, row, column)
                index += 1
        if "size" in title and budget_bytes:
            line = {"dash": "dash", "color": "#444", "width": 1.5}
            figure.add_hline(
                budget_bytes / MIB, line=line, annotation={"text": "budget"}, annotation_position="top left", row=row, col=column
            )
    figure.update_xaxes(title="step")
    return styled(figure, 60 + 290 * rows)


def _has(log: Sequence[LogLine], stages: Sequence[str], keys: Sequence[str]) -> bool:
    return any(line["stage"] in stages and any(key in line for key in keys) for line in log)


def _curve(log: Sequence[LogLine], stage: str, key: str, index: int) -> list[go.Scatter]:
    """The values as they came, faint, and their running mean; what does not jump needs no mean."""
    pairs = [(line["step"], float(line[key])) for line in log if line["stage"] == stage and key in line and "step" in line]
    if not pairs:
        return []
    steps, values = np.array(pairs).T
    values = values / MIB if key == "expected_bytes" else values
    palette = ("#1b5fc1", "#e07b00", "#2a9d5c", "#8e44ad", "#c2185b", "#00838f", "#6d4c41", "#8a8a8a")
    colour, noisy = palette[index % len(palette)], key.endswith("loss")
    name = {"held_out_loss": f"{stage}, held out", "loss": stage}.get(key, f"{stage}, {key.replace('_bytes', ' size')}")
    thin = slice(None, None, max(1, len(steps) // MOST_POINTS))
    exact = go.Scatter(x=steps[thin], y=values[thin], mode="lines", name=name, line={"color": colour, "width": 2})
    if not noisy:
        return [exact]
    faint = exact.update(opacity=0.25, showlegend=False, hoverinfo="skip", line={"color": colour, "width": 1})
    smooth = _running_mean(values)
    return [faint, go.Scatter(x=steps[thin], y=smooth[thin], mode="lines", name=name, line={"color": colour, "width": 2})]


def _running_mean(values: np.ndarray) -> np.ndarray:
    smooth = np.empty_like(values)
    mean = values[0]
    for index, value in enumerate(values):
        mean = mean + SMOOTHING * (value - mean)
        smooth[index] = mean
    return smooth
