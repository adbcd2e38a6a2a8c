"""What does a sweep look like? Metric against size, and bits against the budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from autoquant.core.cost import MIB
from autoquant.reports.plots.allocations import mean_bits
from autoquant.reports.plots.look import ENCODER_KINDS, styled, words
from autoquant.reports.results import Configuration, Sweep

COLOURS = {"dnas": "#1b5fc1", "uniform": "#e07b00", "random": "#8a8a8a", "fisher": "#2a9d5c", "reversed": "#8e44ad"}
OTHER_COLOURS = ("#c2185b", "#00838f", "#6d4c41", "#5c6bc0")
LEAST_SPAN = 0.02  # of a metric


def front(sweep: Sweep) -> go.Figure:
    """Metric against size: seeds as mean with smallest and largest, filled where nothing dominates, full precision dashed."""
    figure = go.Figure()
    for index, strategy in enumerate(sweep.strategies):
        rows = sorted(sweep.of_strategy(strategy), key=lambda c: c.folded.mean[0])
        figure.add_trace(_strategy_trace(sweep, strategy, rows, _colour(strategy, index)))
    mib = sweep.full_precision_bytes / MIB
    figure.add_hline(
        sweep.full_precision_metric,
        line={"dash": "dash", "color": "#444", "width": 1.5},
        annotation={"text": f"full precision {sweep.full_precision_metric:.4f} ({mib:.1f} MiB)", "font": {"color": "#444"}},
        annotation_position="top left",
    )
    figure.update_xaxes(type="log", title="size of the packed file in MiB (log scale)", minor={"ticks": ""})
    ticks = _size_ticks(sweep)
    if len(ticks) <= 12:
        figure.update_xaxes(tickvals=ticks, ticktext=[f"{size:.3g}" for size in ticks])
    figure.update_yaxes(title=sweep.metric)
    _widen(figure, sweep)
    return styled(figure, 440)


def _size_ticks(sweep: Sweep) -> list[float]:
    """MiB: the budgets, or where these count the encoder alone and say nothing of the file, the files themselves."""
    if all(p.allocation.get("budget", {}).get("count", "file") == "file" for p in sweep.points):
        return sorted({c.budget_bytes / MIB for c in sweep.configurations})
    return sorted({float(f"{np.mean([p.file_bytes for p in c.points]) / MIB:.2g}") for c in sweep.configurations})


def _widen(figure: go.Figure, sweep: Sweep) -> None:
    """Points close together are shown so: axes no narrower than 1.5x in size and 2 % of the metric's scale."""
    sizes = [p.file_bytes / MIB for p in sweep.points]
    values = [*(p.metric for p in sweep.points), sweep.full_precision_metric]
    if sizes and max(sizes) < 1.5 * min(sizes):
        figure.update_xaxes(range=np.log10([min(sizes) / 1.4, max(sizes) * 1.4]).tolist())
    if max(values) - min(values) < LEAST_SPAN:
        middle = (max(values) + min(values)) / 2
        figure.update_yaxes(range=[middle - LEAST_SPAN, middle + LEAST_SPAN])


def _strategy_trace(sweep: Sweep, strategy: str, rows: Sequence[Configuration], colour: str) -> go.Scatter:
    size, metric = sweep.objectives.index("size"), sweep.objectives.index("metric")
    means = [c.folded.mean[metric] for c in rows]
    return go.Scatter(
        x=[c.folded.mean[size] / MIB for c in rows],
        y=means,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [c.folded.largest[metric] - mean for c, mean in zip(rows, means, strict=True)],
            "arrayminus": [mean - c.folded.smallest[metric] for c, mean in zip(rows, means, strict=True)],
            "color": colour,
            "thickness": 1.2,
            "width": 4,
        },
        mode="lines+markers" if len(rows) > 1 and not any(c.settings for c in rows) else "markers",
        name=label_of(strategy),
        line={"color": colour, "width": 2},
        marker={
            "size": 9,
            "color": [colour if c.on_front else "white" for c in rows],
            "line": {"color": colour, "width": 2},
        },
        hovertext=[_hover(sweep, c, metric) for c in rows],
        hoverinfo="text",
    )


def _hover(sweep: Sweep, configuration: Configuration, metric: int) -> str:
    folded, seeds = configuration.folded, len(configuration.points)
    size = np.mean([p.file_bytes for p in configuration.points])
    spread = f" ({folded.smallest[metric]:.4f} to {folded.largest[metric]:.4f})" if seeds > 1 else ""
    lines = [
        f"<b>{label_of(configuration.strategy)}</b>{', on the front' if configuration.on_front else ''}",
        f"{sweep.metric} {folded.mean[metric]:.4f}{spread}, {seeds} seed{'s' if seeds > 1 else ''}",
        f"{size / MIB:.2f} MiB, {sweep.full_precision_bytes / size:.1f}x smaller than full precision",
    ]
    lines += [f"seed {m.seed} is missing ({m.reason}): never on the front" for m in configuration.missing]
    lines += [f"{name} = {value}" for name, value in configuration.settings.items()]
    return "<br>".join(lines)


def label_of(strategy: str) -> str:
    return {"dnas": "search (dnas)"}.get(strategy, strategy)


def _colour(strategy: str, index: int) -> str:
    return COLOURS.get(strategy, OTHER_COLOURS[index % len(OTHER_COLOURS)])


def bits_by_budget(sweep: Sweep, strategy: str) -> go.Figure:
    """Mean bits of every kind of matrix as the budget grows, over seeds."""
    figure = go.Figure()
    rows = [c for c in sweep.of_strategy(strategy) if not c.settings and c.points[0].allocation]
    kinds = list(dict.fromkeys(m["kind"] for c in rows for m in c.points[0].allocation["matrices"]))
    for kind in kinds:
        means = [np.mean([mean_bits(m for m in p.allocation["matrices"] if m["kind"] == kind) for p in c.points]) for c in rows]
        dash = "solid" if kind in ENCODER_KINDS else "dot"
        figure.add_trace(
            go.Scatter(
                x=[c.budget_bytes / MIB for c in rows], y=means, name=words(kind), mode="lines+markers", line={"dash": dash}
            )
        )
    ticks = [c.budget_bytes / MIB for c in rows]
    figure.update_xaxes(type="log", title="budget in MiB (log scale)", tickvals=ticks, ticktext=[f"{t:.3g}" for t in ticks])
    figure.update_yaxes(title="mean bits per weight", rangemode="tozero")
    return styled(figure, 420)
