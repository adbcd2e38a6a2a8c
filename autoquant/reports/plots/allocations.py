"""Where did the bits go, and why? Figures of an allocation, from its manifest."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autoquant.core.cost import MIB
from autoquant.reports.plots.look import ENCODER_KINDS, styled, words

Manifest = Mapping[str, Any]
UNIT_KINDS = {"head": ("query", "key", "value", "attention_output"), "ffn": ("ffn_in", "ffn_out")}
WIDTH_COLOURS = {0: "#e3e3e3", 1: "#fde49c", 2: "#b5dfb5", 3: "#5fc0bf", 4: "#2f8dbd", 8: "#1d3478"}
BITS_SCALE = "YlGnBu"
LISTED_GROUPS = 64  # sub-groups that a hover lists one by one


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
    figure.add_trace(_cells(grid, [words(k) for k in kinds], [f"layer {layer}" for layer in layers], gone), 1, 1)
    names = [words(m["kind"]) for m in outside]
    figure.add_trace(_cells([[m] for m in outside], ["mean bits"], names), 1, 2)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(side="bottom", showgrid=False)
    figure.update_layout(coloraxis=_bits_axis())
    return styled(figure, 150 + 42 * max(len(layers), len(outside)), legend=False)


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
            x=[words(k) for k in kinds],
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
    return styled(figure, 150 + 42 * len(layers), legend=False)


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
    lines = [f"<b>{matrix['name']}</b>", f"{matrix['shape'][0]} x {matrix['shape'][1]}, mean {mean_bits([matrix]):.2f} bits"]
    if removed:
        lines.append(f"without {_units(matrix, len(removed))}: {', '.join(map(str, removed))}")
    bits = matrix["bits"]
    if len(bits) <= LISTED_GROUPS:
        texts = _group_texts(matrix)
        width = 1 if len(texts) <= 16 else 4
        lines += [" &nbsp; ".join(texts[i : i + width]) for i in range(0, len(texts), width)]
    else:
        lines += [f"{bits.count(width)} sub-groups of {width} bit" for width in sorted(set(bits))]
    return "<br>".join(lines)


def _group_texts(matrix: Mapping[str, Any]) -> list[str]:
    """Where every sub-group of a manifest's matrix is, and its bits."""
    if matrix["buckets_sha256"] is not None:
        places = [f"bucket {index} ({rows:,} tokens)" for index, rows in enumerate(matrix["rows"])]
    else:
        ends = zip(itertools.accumulate(matrix["rows"]), matrix["rows"], strict=True)
        places = [f"rows {end - rows} to {end - 1}" if rows > 1 else f"row {end - 1}" for end, rows in ends]
    return [f"{place}: {bits} bit" for place, bits in zip(places, matrix["bits"], strict=True)]


def bucketed(manifest: Manifest) -> list[Mapping[str, Any]]:
    """The matrices whose sub-groups are token-frequency buckets: the word embedding, or none."""
    return [matrix for matrix in manifest["matrices"] if matrix["buckets_sha256"] is not None]


def group_weights(matrix: Mapping[str, Any]) -> np.ndarray:
    """How many weights every sub-group of a manifest's matrix has, [sub-groups] int64."""
    return np.array(matrix["rows"]) * matrix["shape"][1]


def mean_bits(matrices: Iterable[Mapping[str, Any]]) -> float:
    """Code bits per weight of a manifest's matrices."""
    pairs = [(group_weights(m), np.array(m["bits"])) for m in matrices]
    weights = sum(int(counts.sum()) for counts, _ in pairs)
    return sum(int(counts @ bits) for counts, bits in pairs) / weights if weights else float("nan")


def bucket_bits(manifest: Manifest) -> go.Figure:
    """Bits of the word embedding's rows by how often their token occurs in the training text, most frequent first."""
    (table,) = bucketed(manifest)
    ends = zip(itertools.accumulate(table["rows"]), table["rows"], strict=True)
    labels = [f"{end - rows + 1:,} to {end:,}" for end, rows in ends]
    figure = go.Figure(
        go.Bar(
            x=labels,
            y=table["bits"],
            marker={"color": [WIDTH_COLOURS[bits] for bits in table["bits"]]},
            text=table["bits"],
            textposition="outside",
            hovertext=[f"{rows:,} tokens, {bits} bit" for rows, bits in zip(table["rows"], table["bits"], strict=True)],
            hoverinfo="text",
        )
    )
    figure.update_xaxes(title="tokens by frequency rank in the training text (frequent left)", type="category")
    figure.update_yaxes(title="bits", range=[0, 9], tickvals=[0, 1, 2, 3, 4, 8])
    return styled(figure, 340, legend=False)


def width_shares(manifest: Manifest) -> go.Figure:
    """Of every kind of matrix, the share of its weights that got each bit-width."""
    kinds = list(dict.fromkeys(m["kind"] for m in manifest["matrices"]))
    widths = sorted({bits for m in manifest["matrices"] for bits in m["bits"]})
    figure = go.Figure()
    for width in widths:
        shares = [_share(manifest, kind, width) for kind in kinds]
        figure.add_trace(
            go.Bar(
                y=[words(k) for k in kinds],
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
    return styled(figure, 130 + 32 * len(kinds))


def _share(manifest: Manifest, kind: str, width: int) -> float:
    chosen = [m for m in manifest["matrices"] if m["kind"] == kind]
    weights, bits = (np.concatenate(parts) for parts in ([group_weights(m) for m in chosen], [m["bits"] for m in chosen]))
    return float(weights[bits == width].sum() / weights.sum())


def sensitivity(manifest: Manifest) -> go.Figure:
    """Why: the sensitivity of the loss per weight (of the chosen bits) against the bits a sub-group got."""
    figure = _reasons(manifest, "sensitivity", lambda m: m["sensitivity"] / np.maximum(group_weights(m), 1))
    figure.update_yaxes(type="log", title="expected loss increase per weight", exponentformat="power")
    return figure


def probability(manifest: Manifest) -> go.Figure:
    """Why, of a search: the learned probability of the chosen bits; where it is small, the budget decided."""
    figure = _reasons(manifest, "probability", lambda m: np.array(m["probability"]))
    figure.update_yaxes(title="learned probability of the chosen bits", range=[-0.03, 1.03])
    return figure


def _reasons(manifest: Manifest, reason: str, value: Callable[[Mapping[str, Any]], np.ndarray]) -> go.Figure:
    """A number of every sub-group for which the manifest knows `reason`, against its bits; one trace a kind of matrix."""
    figure = go.Figure()
    draw = np.random.default_rng(0)
    for kind in dict.fromkeys(m["kind"] for m in manifest["matrices"]):
        matrices = [m for m in manifest["matrices"] if m["kind"] == kind and m[reason] is not None]
        points = [
            (bits + 0.3 * (draw.random() - 0.5), height, f"{m['name']}<br>{text}")
            for m in matrices
            for bits, known, height, text in zip(m["bits"], m[reason], value(m), _group_texts(m), strict=True)
            if known
        ]
        across, up, texts = zip(*points, strict=True) if points else ((), (), ())
        look = {"mode": "markers", "marker": {"size": 5, "opacity": 0.7}, "hoverinfo": "text"}
        figure.add_trace(go.Scatter(x=across, y=up, hovertext=texts, name=words(kind), **look))
    figure.update_xaxes(title="bits (jittered)", tickvals=[0, 1, 2, 3, 4, 8])
    return styled(figure, 460)


def byte_breakdown(manifest: Manifest) -> go.Figure:
    """What fills the file, largest first; the parts add up to its size."""
    parts = sorted(manifest["reached"]["breakdown"].items(), key=lambda item: -item[1])
    total = sum(size for _, size in parts)
    figure = go.Figure(
        go.Bar(
            x=[size / MIB for _, size in parts],
            y=[words(name) for name, _ in parts],
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
    return styled(figure, 110 + 28 * len(parts), legend=False)
