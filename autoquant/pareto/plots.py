"""What does it look like? Plotly figures of sweeps, allocations and training logs; report and notebooks are made of these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autoquant.core.cost import MIB
from autoquant.pareto.results import Configuration, Sweep

Manifest = Mapping[str, Any]
LogLine = Mapping[str, Any]

ENCODER_KINDS = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
UNIT_KINDS = {"head": ("query", "key", "value", "attention_output"), "ffn": ("ffn_in", "ffn_out")}
COLOURS = {"dnas": "#1b5fc1", "uniform": "#e07b00", "random": "#8a8a8a", "fisher": "#2a9d5c", "reversed": "#8e44ad"}
OTHER_COLOURS = ("#c2185b", "#00838f", "#6d4c41", "#5c6bc0")
WIDTH_COLOURS = {0: "#e3e3e3", 1: "#fde49c", 2: "#b5dfb5", 3: "#5fc0bf", 4: "#2f8dbd", 8: "#1d3478"}
BITS_SCALE = "YlGnBu"
MOST_POINTS = 600  # a trace; more than a screen has columns for
LISTED_GROUPS = 64  # sub-groups that a hover lists one by one
LEAST_SPAN = 0.02  # of a metric
SMOOTHING = 0.06  # share of a new value in the running mean


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
    return _styled(figure, 440)


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


# Where the bits went ----------------------------------------------------------------------------------------------


def heatmap(manifest: Manifest) -> go.Figure:
    """Mean bits of every matrix: layers x matrices, and beside them what is outside the layers. Hover for sub-groups."""
    inside = [m for m in manifest["matrices"] if m["layer"] is not None]
    outside = [m for m in manifest["matrices"] if m["layer"] is None]
    kinds = [k for k in ENCODER_KINDS if any(m["kind"] == k for m in inside)]
    layers = sorted({m["layer"] for m in inside})
    found = {(m["layer"], m["kind"]): m for m in inside}
    grid = [[found.get((layer, kind)) for kind in kinds] for layer in layers]
    titles = ("layers", "outside the layers")
    figure = make_subplots(1, 2, column_widths=[0.76, 0.24], horizontal_spacing=0.22, subplot_titles=titles)
    gone = removed_units(manifest)
    figure.add_trace(_cells(grid, [_words(k) for k in kinds], [f"layer {layer}" for layer in layers], gone), 1, 1)
    names = [_words(m["kind"]) for m in outside]
    figure.add_trace(_cells([[m] for m in outside], ["mean bits"], names), 1, 2)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(side="bottom", showgrid=False)
    figure.update_layout(coloraxis=_bits_axis())
    return _styled(figure, 150 + 42 * max(len(layers), len(outside)), legend=False)


def difference(first: Manifest, second: Manifest) -> go.Figure:
    """Mean bits of `second` minus those of `first`, layers x matrices. The two must be of one model."""
    before = {m["name"]: mean_bits([m]) for m in first["matrices"]}
    inside = [m for m in second["matrices"] if m["layer"] is not None]
    kinds = [k for k in ENCODER_KINDS if any(m["kind"] == k for m in inside)]
    layers = sorted({m["layer"] for m in inside})
    change = {(m["layer"], m["kind"]): mean_bits([m]) - before[m["name"]] for m in inside}
    values = [[change.get((layer, kind), np.nan) for kind in kinds] for layer in layers]
    largest = max(0.5, float(np.nanmax(np.abs(values))))
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=[_words(k) for k in kinds],
            y=[f"layer {layer}" for layer in layers],
            colorscale="RdBu",
            zmid=0,
            zmin=-largest,
            zmax=largest,
            texttemplate="%{z:+.2f}",
            xgap=2,
            ygap=2,
            colorbar={"title": "bits"},
            hovertemplate="%{y}, %{x}: %{z:+.2f} bits<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed")
    return _styled(figure, 150 + 42 * len(layers), legend=False)


def removed_units(manifest: Manifest) -> dict[tuple[int, str], list[int]]:
    """(layer, kind of matrix) -> the heads or FFN blocks that were removed from it, by index."""
    found: dict[tuple[int, str], list[int]] = {}
    for name in manifest.get("removed", ()):
        layer, unit, index = name.split(".")
        for kind in UNIT_KINDS[unit]:
            found.setdefault((int(layer), kind), []).append(int(index))
    return found


def _cells(
    grid: Sequence[Sequence[Mapping[str, Any] | None]],
    columns: list[str],
    rows: list[str],
    gone: Mapping[tuple[int, str], list[int]] | None = None,
) -> go.Heatmap:
    def removed(m: Mapping[str, Any]) -> list[int]:
        return (gone or {}).get((m["layer"], m["kind"]), [])

    return go.Heatmap(
        z=[[np.nan if m is None else mean_bits([m]) for m in row] for row in grid],
        x=columns,
        y=rows,
        text=[["" if m is None else _cell_text(m, removed(m)) for m in row] for row in grid],
        texttemplate="%{text}",
        hovertext=[["gone" if m is None else _groups_text(m, removed(m)) for m in row] for row in grid],
        hoverinfo="text",
        coloraxis="coloraxis",
        xgap=2,
        ygap=2,
    )


def _bits_axis() -> dict[str, Any]:
    return {"colorscale": BITS_SCALE, "cmin": 0, "cmax": 8, "colorbar": {"title": "mean bits", "thickness": 14}}


def _cell_text(matrix: Mapping[str, Any], removed: Sequence[int]) -> str:
    return f"{mean_bits([matrix]):.2f}" + (f"<br>-{_units(matrix, len(removed))}" if removed else "")


def _units(matrix: Mapping[str, Any], count: int) -> str:
    unit = "block" if matrix["kind"].startswith("ffn") else "head"
    return f"{count} {unit}{'s' if count > 1 else ''}"


def _groups_text(matrix: Mapping[str, Any], removed: Sequence[int]) -> str:
    groups = matrix["subgroups"]
    lines = [f"<b>{matrix['name']}</b>", f"{matrix['shape'][0]} x {matrix['shape'][1]}, mean {mean_bits([matrix]):.2f} bits"]
    if removed:
        lines.append(f"without {_units(matrix, len(removed))}: {', '.join(map(str, removed))}")
    if len(groups) <= LISTED_GROUPS:
        texts = [f"{_where(group)}: {group['bits']} bit" for group in groups]
        width = 1 if len(texts) <= 16 else 4
        lines += [" &nbsp; ".join(texts[i : i + width]) for i in range(0, len(texts), width)]
    else:
        widths = [group["bits"] for group in groups]
        lines += [f"{widths.count(width)} sub-groups of {width} bit" for width in sorted(set(widths))]
    return "<br>".join(lines)


def _where(group: Mapping[str, Any]) -> str:
    if "bucket" in group:
        return f"bucket {group['bucket']} ({group['rows']:,} tokens)"
    return f"rows {group['rows'][0]} to {group['rows'][1] - 1}"


def rows_of(group: Mapping[str, Any]) -> int:
    """Rows of a manifest's sub-group."""
    return int(group["rows"]) if "bucket" in group else int(group["rows"][1] - group["rows"][0])


def mean_bits(matrices: Iterable[Mapping[str, Any]]) -> float:
    """Code bits per weight of a manifest's matrices."""
    pairs = [(rows_of(g) * m["shape"][1], g["bits"]) for m in matrices for g in m["subgroups"]]
    weights = sum(count for count, _ in pairs)
    return sum(count * bits for count, bits in pairs) / weights if weights else float("nan")


def bucket_bits(manifest: Manifest) -> go.Figure:
    """Bits of the word embedding's rows by how often their token occurs in the training text, most frequent first."""
    buckets = [g for m in manifest["matrices"] for g in m["subgroups"] if "bucket" in g]
    ends = np.cumsum([g["rows"] for g in buckets])
    labels = [f"{int(end) - g['rows'] + 1:,} to {int(end):,}" for g, end in zip(buckets, ends, strict=True)]
    figure = go.Figure(
        go.Bar(
            x=labels,
            y=[g["bits"] for g in buckets],
            marker={"color": [WIDTH_COLOURS[g["bits"]] for g in buckets]},
            text=[g["bits"] for g in buckets],
            textposition="outside",
            hovertext=[f"{g['rows']:,} tokens, {g['bits']} bit" for g in buckets],
            hoverinfo="text",
        )
    )
    figure.update_xaxes(title="tokens by frequency rank in the training text (frequent left)", type="category")
    figure.update_yaxes(title="bits", range=[0, 9], tickvals=[0, 1, 2, 3, 4, 8])
    return _styled(figure, 340, legend=False)


def width_shares(manifest: Manifest) -> go.Figure:
    """Of every kind of matrix, the share of its weights that got each bit-width."""
    kinds = list(dict.fromkeys(m["kind"] for m in manifest["matrices"]))
    widths = sorted({g["bits"] for m in manifest["matrices"] for g in m["subgroups"]})
    figure = go.Figure()
    for width in widths:
        shares = [_share(manifest, kind, width) for kind in kinds]
        figure.add_trace(
            go.Bar(
                y=[_words(k) for k in kinds],
                x=shares,
                orientation="h",
                name=f"{width} bit",
                marker={"color": WIDTH_COLOURS[width]},
                hovertemplate=f"%{{y}}: %{{x:.0%}} of the weights at {width} bit<extra></extra>",
            )
        )
    figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    figure.update_xaxes(title="share of the weights", tickformat=".0%", range=[0, 1])
    figure.update_yaxes(autorange="reversed")
    return _styled(figure, 130 + 32 * len(kinds))


def _share(manifest: Manifest, kind: str, width: int) -> float:
    groups = [(rows_of(g) * m["shape"][1], g["bits"]) for m in manifest["matrices"] if m["kind"] == kind for g in m["subgroups"]]
    return sum(count for count, bits in groups if bits == width) / sum(count for count, _ in groups)


def sensitivity(manifest: Manifest) -> go.Figure:
    """Why: the sensitivity of the loss per weight (of the chosen bits) against the bits a sub-group got."""
    figure = _reasons(manifest, lambda m, g: g["why"]["sensitivity"] / (rows_of(g) * m["shape"][1]), "sensitivity")
    figure.update_yaxes(type="log", title="expected loss increase per weight", exponentformat="power")
    return figure


def probability(manifest: Manifest) -> go.Figure:
    """Why, of a search: the learned probability of the chosen bits; where it is small, the budget decided."""
    figure = _reasons(manifest, lambda m, g: g["why"]["probability"], "probability")
    figure.update_yaxes(title="learned probability of the chosen bits", range=[-0.03, 1.03])
    return figure


def _reasons(manifest: Manifest, value: Callable[[Any, Any], float], reason: str) -> go.Figure:
    """A number of every sub-group for which the manifest knows `reason`, against its bits; one trace a kind of matrix."""
    figure = go.Figure()
    kinds = list(dict.fromkeys(m["kind"] for m in manifest["matrices"]))
    draw = np.random.default_rng(0)
    for kind in kinds:
        groups = [(m, g) for m in manifest["matrices"] if m["kind"] == kind for g in m["subgroups"]]
        known = [(m, g) for m, g in groups if g["why"][reason]]
        figure.add_trace(
            go.Scatter(
                x=[g["bits"] + 0.3 * (draw.random() - 0.5) for _, g in known],
                y=[value(m, g) for m, g in known],
                mode="markers",
                marker={"size": 5, "opacity": 0.7},
                name=_words(kind),
                hovertext=[f"{m['name']}<br>{_where(g)}: {g['bits']} bit" for m, g in known],
                hoverinfo="text",
            )
        )
    figure.update_xaxes(title="bits (jittered)", tickvals=[0, 1, 2, 3, 4, 8])
    return _styled(figure, 460)


def bits_by_budget(sweep: Sweep, strategy: str) -> go.Figure:
    """Mean bits of every kind of matrix as the budget grows, over seeds."""
    figure = go.Figure()
    rows = [c for c in sweep.of_strategy(strategy) if not c.settings and c.points[0].allocation]
    ticks = [c.budget_bytes / MIB for c in rows]
    kinds = list(dict.fromkeys(m["kind"] for c in rows for m in c.points[0].allocation["matrices"]))
    for kind in kinds:
        means = [np.mean([mean_bits(m for m in p.allocation["matrices"] if m["kind"] == kind) for p in c.points]) for c in rows]
        dash = "solid" if kind in ENCODER_KINDS else "dot"
        figure.add_trace(
            go.Scatter(
                x=[c.budget_bytes / MIB for c in rows], y=means, name=_words(kind), mode="lines+markers", line={"dash": dash}
            )
        )
    ticks = [c.budget_bytes / MIB for c in rows]
    figure.update_xaxes(type="log", title="budget in MiB (log scale)", tickvals=ticks, ticktext=[f"{t:.3g}" for t in ticks])
    figure.update_yaxes(title="mean bits per weight", rangemode="tozero")
    return _styled(figure, 420)


# What happened on the way ------------------------------------------------------------------------------------------


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
    return _styled(figure, 60 + 290 * rows)


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


def byte_breakdown(manifest: Manifest) -> go.Figure:
    """What fills the file, largest first; the parts add up to its size."""
    parts = sorted(manifest["reached"]["breakdown"].items(), key=lambda item: -item[1])
    total = sum(size for _, size in parts)
    figure = go.Figure(
        go.Bar(
            x=[size / MIB for _, size in parts],
            y=[_words(name) for name, _ in parts],
            orientation="h",
            marker={"color": "#1b5fc1"},
            text=[f"{size:,} bytes, {size / total:.1%}" for _, size in parts],
            textposition="outside",
            cliponaxis=False,
            hoverinfo="text",
        )
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title=f"MiB of {total / MIB:.2f}", range=[0, 1.3 * parts[0][1] / MIB])
    return _styled(figure, 110 + 28 * len(parts), legend=False)


def _words(name: str) -> str:
    return name.replace("_", " ").replace("ffn", "FFN")


def _styled(figure: go.Figure, height: int, legend: bool = True) -> go.Figure:
    """One look for all; the caller gives the title, since in a report it is a heading."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        font={"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 13},
        margin={"l": 20, "r": 20, "t": 40, "b": 20},
        showlegend=legend,
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure
