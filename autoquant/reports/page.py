"""report.html: what a run or a sweep found, as one file that opens from disk without a network.

plotly.js (about 4.6 MiB) is written into the file, since a link to it would need one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from autoquant.core.cost import MIB
from autoquant.core.errors import RunError
from autoquant.core.files import atomic_write_text
from autoquant.core.progress import duration
from autoquant.core.run import RunDirectory
from autoquant.export.manifest import read_manifest
from autoquant.reports import plots
from autoquant.reports.command import run_command
from autoquant.reports.results import JSON_NAME, TUNING_NOTE, Configuration, Point, Sweep

NAME = "report.html"
TEMPLATE = Path(__file__).with_name("report.template.html")
FRONT_TEXT = "Higher and further left is better; one seed, so no error bars."
PLOT_CONFIG = {"displaylogo": False, "responsive": True}


@dataclass(frozen=True)
class Section:
    """A heading, a sentence on how to read what follows, and HTML."""

    title: str
    text: str
    body: str


def write_report(folder: str | Path) -> Path:
    """Write report.html into the folder of a finished run or of a sweep. Raises RunError if it holds neither."""
    folder = Path(folder)
    if (folder / JSON_NAME).exists():
        page = sweep_page(Sweep.read(folder), folder)
    elif (folder / "metrics.json").exists() and (folder / "model" / "allocation.json").exists():
        page = run_page(folder)
    else:
        raise RunError(f"{folder} holds no finished run (metrics.json, model/) and no sweep ({JSON_NAME}): nothing to report.")
    atomic_write_text(folder / NAME, page)
    return folder / NAME


# A run ------------------------------------------------------------------------------------------------------------


def run_page(folder: Path) -> str:
    """The report of a finished run, from what it left on disk."""
    run = RunDirectory(folder)
    metrics = run.result()
    manifest = read_manifest(folder / "model" / "allocation.json")
    info = run.info()
    sweep = as_sweep(metrics, manifest)
    sections = [
        Section("Metric and size", f"{FRONT_TEXT} {sweep.note}", _figure(plots.front(sweep))),
        Section("Methods", "All of the same budget, recovered the same way.", _methods(sweep)),
        *_race(info.get("race", {})),
        *_allocation_sections(manifest),
        *_curve_sections(run.read_log(), metrics["bytes"]["budget"] if metrics["bytes"]["count"] == "file" else None),
        Section("Bytes", "Everything that model.safetensors holds.", _figure(plots.byte_breakdown(manifest))),
        Section("Seconds", "Wall-clock time of every stage.", _seconds(metrics["seconds"])),
        _reproduce(_command(info, metrics["task"], folder), info),
    ]
    title = f"{metrics['task']}: {plots.label_of(metrics['strategy'])} at {metrics['bytes']['file'] / MIB:.2f} MiB"
    return _page(title, f"{folder.name}, {info['created']}", _run_tiles(metrics), sections)


def _command(info: Mapping[str, Any], task: str, folder: Path) -> str:
    return run_command(info["settings"], task, info.get("data_source"), info.get("allocation"), folder)


def as_sweep(metrics: Mapping[str, Any], manifest: Mapping[str, Any]) -> Sweep:
    """A run seen as a sweep of one budget: its strategy and controls."""
    name, sizes, ours = metrics["metric"]["name"], metrics["bytes"], metrics["strategy"]
    files = {ours: sizes["file"], **sizes["controls"]}
    points = [
        Point(
            cell=strategy,
            strategy=strategy,
            seed=metrics["seed"],
            budget_bytes=sizes["budget"],
            file_bytes=size,
            metric=metrics["all_metrics"][strategy][name],
            allocation=manifest if strategy == ours else {},
        )
        for strategy, size in files.items()
    ]
    note = TUNING_NOTE if metrics.get("tuning") else ""
    full = metrics["metric"]["full_precision"]
    return Sweep(metrics["task"], name, sizes["full_precision"], full, tuple(points), note=note)


def _run_tiles(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    metric, sizes = metrics["metric"], metrics["bytes"]
    against = [f"full precision {metric['full_precision']:.4f}"]
    against += [f"uniform {metric['uniform']:.4f}"] if metric["uniform"] is not None else []
    share = sizes["counted"] / sizes["budget"]
    return [
        (metric["name"], f"{metric['value']:.4f}", ", ".join(against)),
        ("file size", f"{sizes['file'] / MIB:.2f} MiB", f"{share:.2%} of the budget of {sizes['budget']:,} bytes"),
        ("smaller than float32", f"{sizes['full_precision'] / sizes['file']:.1f}x", f"from {sizes['full_precision']:,} bytes"),
        ("encoder", f"{metrics['encoder_bits_per_weight']:.2f} bits", "per weight, scales not counted"),
        ("time", duration(sum(metrics["seconds"].values())), "all stages"),
    ]


def _methods(sweep: Sweep) -> str:
    full = [["full precision", f"{sweep.full_precision_bytes:,}", "1.0x", f"{sweep.full_precision_metric:.4f}"]]
    rows = [
        [plots.label_of(p.strategy), f"{p.file_bytes:,}", f"{sweep.full_precision_bytes / p.file_bytes:.1f}x", f"{p.metric:.4f}"]
        for p in sweep.points
    ]
    return _table(["allocation", "file bytes", "ratio", sweep.metric], full + rows)


def _race(losses: Mapping[str, float]) -> list[Section]:
    """Who ran, the winner first; nothing where there was no race."""
    text = "How far predictions on held-out training texts were from the teacher's after --search.race-steps of recovery; "
    text += "the least wins."
    rows = [[plots.label_of(name), f"{loss:.4f}"] for name, loss in sorted(losses.items(), key=lambda item: item[1])]
    return [Section("Race", text, _table(["allocation", "nats a text"], rows))] if rows else []


def _allocation_sections(manifest: Mapping[str, Any]) -> list[Section]:
    sections = [
        Section(
            "Where the bits went",
            "Mean bits per weight of every matrix; hover for its sub-groups.",
            _figure(plots.heatmap(manifest)),
        ),
        Section("Bit-widths", "Share of the weights at each width.", _figure(plots.width_shares(manifest))),
    ]
    if plots.bucketed(manifest):
        text = "Rows of the word embedding share bits with tokens about as frequent in the training text."
        sections.append(Section("Bits by token frequency", text, _figure(plots.bucket_bits(manifest))))
    return sections


def _curve_sections(log: Sequence[Mapping[str, Any]], budget_bytes: int | None) -> list[Section]:
    if not log:
        return []
    text = "Faint: every step. Bold: running mean. The expected size is that of the choice probabilities."
    return [Section("Training", text, _figure(plots.training_curves(log, budget_bytes)))]


def _seconds(seconds: Mapping[str, float]) -> str:
    return _table(["stage", "seconds"], [[stage, f"{spent:.1f}"] for stage, spent in seconds.items()])


# A sweep ----------------------------------------------------------------------------------------------------------


def sweep_page(sweep: Sweep, folder: Path) -> str:
    """The report of a sweep; trials whose folders are there are linked."""
    best = _shown(sweep)
    text = "Filled markers: nothing is both smaller and better, on the mean over seeds. Bars: smallest and largest seed."
    text += " A configuration that lacks a seed is never on the front." if sweep.missing else ""
    sections = [Section("The front", f"{text} {sweep.note}", _figure(plots.front(sweep)))]
    sections.append(Section("Configurations", "Mean (smallest to largest) over seeds.", configurations_table(sweep, folder)))
    if len(best) > 1:
        text = f"Mean bits per weight of each kind of matrix as the budget grows ({plots.label_of(best[0].strategy)})."
        sections.append(Section("Where more bytes go", text, _figure(plots.bits_by_budget(sweep, best[0].strategy))))
    sections += [Section(f"Allocation at {_mib(c)} MiB", _about(c), _figure(_heatmap(c))) for c in best]
    for shared in sorted((folder / "shared").glob("*/metrics.jsonl")):
        run = RunDirectory(shared.parent)
        curves = _curve_sections(run.read_log(), run.info()["settings"].get("budget"))
        sections += [Section(f"Training shared by the trials: {shared.parent.name}", s.text, s.body) for s in curves]
    sections.append(_reproduce(sweep.command, {}))
    return _page(f"{sweep.task}: {sweep.metric} against size", folder.name, _sweep_tiles(sweep), sections)


def _shown(sweep: Sweep) -> list[Configuration]:
    """The configurations whose allocations are drawn: those of the strategy that covers most, without tuned settings first."""
    volumes = sweep.hypervolumes()
    ranked = sorted((s for s in sweep.strategies if s not in ("uniform", "random")), key=lambda s: -volumes.get(s, 0.0))
    chosen = sweep.of_strategy((ranked or list(sweep.strategies))[0]) if sweep.strategies else ()
    return [c for c in chosen if c.points[0].allocation and (c.on_front or not c.settings)]


def _heatmap(configuration: Configuration) -> go.Figure:
    return plots.heatmap(configuration.points[0].allocation)


def _about(configuration: Configuration) -> str:
    point = configuration.points[0]
    return f"{plots.label_of(point.strategy)}, seed {point.seed}, {point.file_bytes:,} bytes; hover for sub-groups."


def _mib(configuration: Configuration) -> str:
    return f"{configuration.budget_bytes / MIB:.3g}"


def configurations_table(sweep: Sweep, folder: Path | None = None) -> str:
    """Every configuration as an HTML table, smallest first; trials in `folder` are linked."""
    columns = ["budget MiB", "allocation", "settings", "file bytes", "ratio", sweep.metric, "seeds", "front"]
    latency = sweep.objectives.index("latency") if "latency" in sweep.objectives else None
    columns += ["latency ms"] if latency is not None else []
    metric, rows = sweep.objectives.index("metric"), []
    for c in sorted(sweep.configurations, key=lambda c: (c.budget_bytes, c.strategy)):
        size = sum(p.file_bytes for p in c.points) / len(c.points)
        value = f"{c.folded.mean[metric]:.4f}"
        if len(c.points) > 1:
            value += f" ({c.folded.smallest[metric]:.4f} to {c.folded.largest[metric]:.4f})"
        seeds = ", ".join([*(_link(folder, p) for p in c.points), *(f"{m.seed} missing" for m in c.missing)])
        settings = escape(", ".join(f"{k} {v}" for k, v in c.settings.items()))
        ratio = f"{sweep.full_precision_bytes / size:.1f}x"
        front = "yes" if c.on_front else ""
        row = [_mib(c), escape(plots.label_of(c.strategy)), settings, f"{size:,.0f}", ratio, value, seeds, front]
        rows.append(row + ([f"{c.folded.mean[latency]:.2f}"] if latency is not None else []))
    return _table(columns, rows, raw=True)


def _link(folder: Path | None, point: Point) -> str:
    target = f"trials/{point.cell}/{NAME}"
    linked = folder is not None and (folder / target).exists()
    return f'<a href="{escape(target)}">{point.seed}</a>' if linked else str(point.seed)


def _sweep_tiles(sweep: Sweep) -> list[tuple[str, str, str]]:
    volumes = sweep.hypervolumes()
    front = [c for c in sweep.configurations if c.on_front]
    tiles = [
        ("points", str(len(sweep.points)), f"{len(sweep.configurations)} configurations, {len(front)} on the front"),
        ("full precision", f"{sweep.full_precision_metric:.4f}", f"{sweep.full_precision_bytes / MIB:.1f} MiB"),
    ]
    text = "of the box from 0 bytes to float32's size under full precision's metric"
    return tiles + [(f"hypervolume, {plots.label_of(name)}", f"{volume:.2%}", text) for name, volume in volumes.items()]


# HTML -------------------------------------------------------------------------------------------------------------


def _figure(figure: go.Figure) -> str:
    return figure.to_html(full_html=False, include_plotlyjs=False, config=PLOT_CONFIG)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], raw: bool = False) -> str:
    """`raw` cells are HTML already."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell if raw else escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _reproduce(command: str, info: Mapping[str, Any]) -> Section:
    parts = [f"<pre>{escape(command)}</pre>"] if command else []
    for name in ("hashes", "versions", "settings"):
        if info.get(name):
            text = json.dumps(info[name], indent=1, sort_keys=True)
            parts.append(f"<details><summary>{name}</summary><pre>{escape(text)}</pre></details>")
    return Section("Reproduce", "Same inputs, versions and machine: the same bytes.", "\n".join(parts))


def _page(title: str, subtitle: str, tiles: Sequence[tuple[str, str, str]], sections: Sequence[Section]) -> str:
    boxes = [
        f'<div class="tile"><span>{escape(name)}</span><strong>{escape(value)}</strong><small>{escape(text)}</small></div>'
        for name, value, text in tiles
    ]
    blocks = [f"<section><h2>{escape(s.title)}</h2><p>{escape(s.text)}</p>{s.body}</section>" for s in sections]
    values = {
        "title": escape(title),
        "subtitle": escape(subtitle),
        "tiles": "\n".join(boxes),
        "sections": "\n".join(blocks),
        "plotly": get_plotlyjs(),
    }
    page = TEMPLATE.read_text("utf-8")
    for name, value in values.items():
        page = page.replace(f"<!-- {name} -->", value)
    return page
