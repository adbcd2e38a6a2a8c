"""Ours beside the papers' numbers: every row that has a recipe, on any model. Prints what has been measured.

    python experiments/paper_tables.py                                                     # print, for the default backbone
    python experiments/paper_tables.py --measure --data-dir glue --tasks sst2 mrpc         # measure what is missing; resumable
    python experiments/paper_tables.py --measure --model bert-base-uncased --tasks sst2 mnli    # the papers' model, from the hub

The papers' numbers are for BERT-base (DistilBERT in the table of students) on GLUE's dev sets, in percent: AQ-BERT (Zhao et al.,
IJCAI 2021), and the table of MREM (Bai et al., NeurIPS 2022), which has those of the others. On another backbone only the order
of the rows and their distance to full precision (in brackets) compare. Cells: `results/paper/<model>/`; for the default
backbone those of the comparison (`compare.py`) besides, which are of 5,000 training sentences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tyro

from autoquant.assets import default_backbone
from autoquant.compare.cells import Cell, read_cells
from autoquant.compare.run import compare
from autoquant.compare.table import markdown, points
from autoquant.core.errors import RunError
from autoquant.core.progress import TerminalProgress
from autoquant.core.settings import available_presets
from autoquant.machine import Machine
from autoquant.tasks.load import load_glue
from compare import CELLS

RESULTS = Path(__file__).parent / "results" / "paper"
GLUE = ("mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc", "rte")


@dataclass(frozen=True)
class Row:
    """What a paper reports: megabytes of what it counts, and percent by task."""

    preset: str
    megabytes: float
    percent: Mapping[str, float]


@dataclass(frozen=True)
class Paper:
    """A table; `counts` is what its megabytes are of."""

    title: str
    counts: str
    full: Row
    rows: tuple[Row, ...]


def _glue(preset: str, megabytes: float, *percent: float | None) -> Row:
    """A row of MREM's table, tasks in GLUE's order there; None where nothing is reported."""
    return Row(preset, megabytes, {task: value for task, value in zip(GLUE, percent, strict=False) if value is not None})


PAPERS = (
    Paper(
        "AQ-BERT and Q-BERT, 128 groups, 8-bit activations",
        "the encoder",
        Row("full precision", 324.5, {"sst2": 93.5, "mnli": 84.0}),
        (
            Row("aqbert-3.0", 30, {"sst2": 92.7, "mnli": 83.5}),
            Row("aqbert-2.5", 25, {"sst2": 92.5, "mnli": 82.9}),
            Row("aqbert-2.0", 20, {"sst2": 91.1, "mnli": 81.8}),
            Row("qbert-2-4-8-8", 30, {"sst2": 92.5, "mnli": 83.5}),
            Row("qbert-2-3-8-8", 25, {"sst2": 92.0, "mnli": 81.75}),
            Row("qbert-2-8-8", 20, {"sst2": 84.6, "mnli": 76.5}),
        ),
    ),
    Paper(
        "AQ-BERT on DistilBERT; ours on a student of half the layers",
        "the encoder",
        Row("full precision", 162, {"sst2": 91.3, "mnli": 82.2}),
        (
            Row("distil-3.0", 15, {"sst2": 91.2, "mnli": 81.5}),
            Row("distil-2.5", 12.5, {"sst2": 90.7, "mnli": 80.0}),
            Row("distil-2.0", 10, {"sst2": 89.7, "mnli": 78.0}),
        ),
    ),
    Paper(
        "AQ-BERT by groups a matrix",
        "the encoder",
        Row("full precision", 324.5, {"sst2": 93.5}),
        (
            Row("aqbert-4.0-groups-1", 40, {"sst2": 89.6}),
            Row("aqbert-4.0-groups-12", 40, {"sst2": 92.7}),
            Row("aqbert-4.0-groups-128", 40, {"sst2": 92.9}),
            Row("aqbert-4.0-groups-768", 40, {"sst2": 92.9}),
        ),
    ),
    Paper(
        "MREM and the systems that it compares with",
        "the whole model",
        _glue("full precision", 418, 84.9, 91.4, 92.1, 93.2, 59.7, 90.1, 86.3, 72.2),
        (
            _glue("qbert-2-8-8", 43, 76.6, None, None, 84.6),
            _glue("qbert-2-4-8-8", 53, 83.5, None, None, 92.6),
            _glue("quant-noise-pq", 38, 83.6),
            _glue("ternarybert-2-2-8", 28, 83.3, 90.1, 91.1, 92.8, 55.7, 87.9, 87.5, 72.9),
            _glue("gobo-3-4-32", 43, 83.7, None, None, None, None, 88.3),
            _glue("gobo-2-2-32", 28, 71.0, None, None, None, None, 82.7),
            _glue("mrem-s-4-4-8", 50, 83.5, 90.2, 91.2, 91.4, 55.1, 89.1, 84.8, 71.8),
            _glue("mrem-s-2-2-8", 28, 82.7, 89.6, 90.3, 91.2, 52.3, 88.7, 86.0, 71.1),
            _glue("mrem-p-4-4-8", 50, 83.4, 90.2, 91.0, 91.5, 54.7, 89.1, 86.3, 71.1),
            _glue("mrem-p-2-2-8", 28, 82.3, 89.4, 90.3, 91.3, 52.9, 88.3, 85.8, 72.9),
        ),
    ),
)


@dataclass(frozen=True)
class Options:
    """What to measure or print."""

    measure: bool = False
    """Measure the cells that are missing."""
    data_dir: Path | None = None
    """Folder with GLUE; without it the hub."""
    model: str | None = None
    """Bare encoder: a directory or hub id; without it the embedded one."""
    tasks: tuple[str, ...] = ("sst2", "mrpc")
    presets: tuple[str, ...] = ()
    """Only these."""
    seeds: tuple[int, ...] = (0,)
    train_rows: int | None = None
    """Use only this many training rows."""
    max_length: int = 128
    runs: Path = Path("runs/paper")
    threads: int = 2

    @property
    def name(self) -> str:
        return Path(self.model or str(default_backbone())).name


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    for task in options.tasks if options.measure else ():
        measure(options, task)
    print(tables(known_cells(options.name)))


def presets() -> list[str]:
    """Rows that have a recipe here."""
    rows = [row.preset for paper in PAPERS for row in paper.rows]
    return [name for name in dict.fromkeys(rows) if name in available_presets()]


def measure(options: Options, task: str) -> None:
    """Every missing cell of a task, at the size that its recipe fixes."""
    data, progress = load_glue(task, options.data_dir), TerminalProgress()
    if options.train_rows is not None:
        data = dataclasses.replace(data, train=data.train.subsample(options.train_rows))
    try:
        compare(
            options.model,
            data,
            methods=options.presets or presets(),
            seeds=options.seeds,
            run_dir=options.runs / options.name / task,
            max_length=options.max_length,
            machine=Machine(threads=options.threads),
            resume=True,
            progress=progress,
            results=RESULTS / options.name,
        )
    except RunError as error:
        progress.say(str(error))


def known_cells(name: str) -> list[Cell]:
    """Cells of a model; of the default backbone those of the comparison too, where a task and recipe has none of its own."""
    own = read_cells(RESULTS / name)
    there = {(cell.task, cell.method) for cell in own}
    more = read_cells(CELLS) if name == default_backbone().name else []
    return own + [cell for cell in more if cell.own_size and (cell.task, cell.method) not in there]


def tables(cells: list[Cell], measured_only: bool = False) -> str:
    """Every paper's table: its megabytes and percent, and ours, as means over seeds; `measured_only` leaves out other tasks."""
    parts = []
    for paper in PAPERS:
        tasks = [task for task in GLUE if any(task in row.percent for row in paper.rows)]
        if measured_only:
            tasks = [task for task in tasks if any(cell.task == task for cell in cells)]
        if tasks:
            parts += [f"**{paper.title}** (MB of {paper.counts})", _table(paper, cells, tasks)]
    return "\n\n".join(parts)


def _table(paper: Paper, cells: list[Cell], tasks: list[str]) -> str:
    columns = ["", "paper: MB", "ours: MB of the file", *(f"{task}: {whose}" for task in tasks for whose in ("paper", "ours"))]
    rows = [_full(paper, cells, tasks)]
    for row in paper.rows:
        own = [cell for cell in cells if cell.method == row.preset]
        texts = []
        for task in tasks:
            found = [cell for cell in own if cell.task == task]
            texts += [_percent(row, task, paper.full), _ours(found)]
        size = f"{max(cell.file_bytes for cell in own) / 1e6:.1f}" if own else ""
        rows.append([row.preset, f"{row.megabytes:g}", size, *texts])
    return markdown(columns, rows)


def _ours(found: list[Cell]) -> str:
    """The mean, and how far it is from full precision: a student's from the student's."""
    if not found:
        return "no cells yet"
    mean = sum(cell.metric for cell in found) / len(found)
    full = sum(cell.full_precision for cell in found) / len(found)
    return f"{points(mean)} ({100 * (mean - full):+.1f})"


def _full(paper: Paper, cells: list[Cell], tasks: list[str]) -> list[str]:
    """Full precision, as the cells of this table have it."""
    own = [cell for cell in cells if cell.method in {row.preset for row in paper.rows}]
    texts = []
    for task in tasks:
        found = [cell.full_precision for cell in own if cell.task == task]
        texts += [_percent(paper.full, task), points(sum(found) / len(found)) if found else "no cells yet"]
    size = f"{max(cell.full_precision_bytes for cell in own) / 1e6:.1f}" if own else ""
    return [paper.full.preset, f"{paper.full.megabytes:g}", size, *texts]


def _percent(row: Row, task: str, full: Row | None = None) -> str:
    if task not in row.percent:
        return ""
    return f"{row.percent[task]:g}" + (f" ({row.percent[task] - full.percent[task]:+.1f})" if full else "")


if __name__ == "__main__":
    main()
