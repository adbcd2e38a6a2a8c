"""Which sizes buy which accuracy? The default backbone on the embedded reviews, every point twice; resumable point by point.

    python experiments/pareto.py                       # six budgets from 3 to 12 MiB, two seeds, search and uniform
    python experiments/pareto.py --strategies random   # random bits too, beside what is there
    python experiments/pareto.py --fresh               # the same with a search for each budget, to see what reuse costs
    python experiments/pareto.py --picture             # only draw what is there

Every point is kept in `results/pareto/<cell>.json` (`results/pareto-fresh/` with --fresh): numbers and allocation, no weights.
Points that are there are not measured again. The packed models stay in `runs/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from pinned import PINNED

from autoquant.core.progress import TerminalProgress
from autoquant.core.settings import load_preset
from autoquant.machine import Machine
from autoquant.pareto.sweep import sweep
from autoquant.reports import plots
from autoquant.reports.results import Sweep

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """What to measure."""

    budgets: tuple[float, ...] = (3, 4, 5, 6, 8, 12)
    """MiB."""
    seeds: tuple[int, ...] = (0, 1)
    strategies: tuple[str, ...] = ("dnas", "uniform")
    fresh: bool = False
    """A search for each budget instead of one for all; only the search, not its controls."""
    preset: str = PINNED
    runs: Path = Path("runs/pareto-movies")
    model: str | None = None
    """A fine-tuned teacher; without it the one in `runs`, trained if need be."""
    threads: int = 2
    picture: bool = False
    """Measure nothing."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if not options.picture:
        measure(options)
    draw(RESULTS / "pareto")
    compare(RESULTS / "pareto", RESULTS / "pareto-fresh")


def measure(options: Options) -> None:
    """Every cell that is missing; with `fresh` the teacher is that of the other sweep, or the two would not compare.

    What is asked for may grow: other strategies are another study of the same folder, with its teacher, calibration and cells.
    """
    teacher = options.runs / "shared" / "teacher" / "teacher"
    fresh_model = str(teacher) if options.fresh and options.model is None else options.model
    strategies = ("dnas",) if options.fresh else options.strategies
    run_dir = options.runs.with_name(options.runs.name + "-fresh") if options.fresh else options.runs
    usual = options.fresh or strategies == Options.strategies
    sweep(
        fresh_model,
        budgets=options.budgets,
        seeds=options.seeds,
        strategies=strategies,
        recipe=load_preset(options.preset),
        run_dir=run_dir,
        study_name=run_dir.name if usual else f"{run_dir.name}-{'-'.join(strategies)}",
        reuse_search=not options.fresh,
        machine=Machine(threads=options.threads),
        resume=True,
        progress=TerminalProgress(),
        cells=RESULTS / ("pareto-fresh" if options.fresh else "pareto"),
    )


def draw(folder: Path) -> None:
    """The front as front.png, for the README."""
    found = Sweep.read_cells(folder)
    if found is not None:
        plots.front(found).write_image(folder / "front.png", width=900, height=440, scale=2)


def compare(reused: Path, fresh: Path) -> None:
    """Print what reuse costs: the metric of a fresh search minus that of the shared one, cell by cell."""
    ours, theirs = Sweep.read_cells(reused), Sweep.read_cells(fresh)
    if ours is None or theirs is None:
        return
    shared = {p.cell: p.metric for p in ours.points}
    pairs = [(p.cell, p.metric - shared[p.cell]) for p in theirs.points if p.cell in shared]
    for cell, difference in pairs:
        print(f"{cell}: fresh - shared search {100 * difference:+.2f} points")
    if pairs:
        print(f"mean of {len(pairs)}: {100 * sum(difference for _, difference in pairs) / len(pairs):+.2f} points")


if __name__ == "__main__":
    main()
