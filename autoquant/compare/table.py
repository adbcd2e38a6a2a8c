"""What came out of it? Seeds folded to mean and spread, each method against uniform bits; for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from autoquant.compare.bootstrap import Difference, paired_difference
from autoquant.compare.cells import Cell
from autoquant.compare.methods import BASELINE
from autoquant.core.cost import mib_text

FULL_SHARE = 0.97  # of its budget that a method with free bits fills
COLUMNS = ("method", "MiB", "file bytes", "seeds", "mean [range]", f"minus {BASELINE} [95 %]", "seconds", "peak MiB")
NOTE = (
    f"Points; minus {BASELINE}: the mean difference over the seeds both have, and a paired bootstrap's interval over examples "
    "and seeds. Seconds of search, recovery and packing (medians), without teacher and calibration."
)


@dataclass(frozen=True)
class Summary:
    """A method under a budget, over its seeds. Metrics are shares of 1, seconds a median, file bytes and memory the largest."""

    method: str
    budget_bytes: int
    file_bytes: int
    seeds: int
    mean: float
    smallest: float
    largest: float
    difference: Difference | None
    """None without cells of uniform bits, and for them."""
    seconds: float
    peak_mib: float
    own_size: bool


def summarise(cells: Sequence[Cell]) -> list[Summary]:
    """Cells of one task -> a row a method and budget: budgets from small to large, methods from best to worst."""
    groups: dict[tuple[int, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.budget_bytes, cell.method), []).append(cell)
    rows = [_summary(group, groups.get((size, BASELINE), [])) for (size, _), group in groups.items()]
    return sorted(rows, key=lambda row: (row.budget_bytes, -row.mean, row.method))


def _summary(cells: list[Cell], baseline: list[Cell]) -> Summary:
    metrics, first = [cell.metric for cell in cells], cells[0]
    return Summary(
        method=first.method,
        budget_bytes=first.budget_bytes,
        file_bytes=max(cell.file_bytes for cell in cells),
        seeds=len(cells),
        mean=float(np.mean(metrics)),
        smallest=min(metrics),
        largest=max(metrics),
        difference=None if first.method == BASELINE else against(cells, baseline),
        seconds=float(np.median([cell.seconds for cell in cells])),
        peak_mib=max(cell.peak_mib for cell in cells),
        own_size=first.own_size,
    )


def against(cells: Sequence[Cell], baseline: Sequence[Cell]) -> Difference | None:
    """The difference over the seeds that both have; None if there are none."""
    theirs = {cell.seed: cell for cell in baseline}
    pairs = [(cell, theirs[cell.seed]) for cell in sorted(cells, key=lambda cell: cell.seed) if cell.seed in theirs]
    if not pairs:
        return None
    ours, others = (np.stack([pair[side].answers for pair in pairs]) for side in (0, 1))
    return paired_difference(pairs[0][0].metric_name, ours, others, np.asarray(pairs[0][0].labels))


def table(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """One task's cells as rows of COLUMNS, its full precision first."""
    teacher = full_precision(cells)
    full = ("full precision", "", f"{teacher.full_precision_bytes:,}", "", points(teacher.full_precision), "", "", "")
    return [full, *map(_texts, summarise(cells))]


def full_precision(cells: Sequence[Cell]) -> Cell:
    """A cell that knows the whole teacher: some recipes work on a smaller student of it."""
    return max(cells, key=lambda cell: cell.full_precision_bytes)


def _texts(row: Summary) -> tuple[str, ...]:
    metric, spent = f"{points(row.mean)}{_spread(row)}", f"{row.seconds:.0f}"
    size, difference = f"{row.file_bytes:,}", difference_text(row.difference)
    return row.method, mib_text(row.budget_bytes), size, str(row.seeds), metric, difference, spent, f"{row.peak_mib:.0f}"


def points(share: float) -> str:
    """A metric as people read it.

    >>> points(0.8486)
    '84.86'
    """
    return f"{100 * share:.2f}"


def distinct_sizes(sizes: Iterable[int]) -> list[int]:
    """Ascending; of those that `mib_text` writes alike the smallest.

    >>> distinct_sizes([5_000_000, 2_000_010, 2_000_000])
    [2000000, 5000000]
    """
    found: dict[str, int] = {}
    for size in sorted(sizes):
        found.setdefault(mib_text(size), size)
    return list(found.values())


def difference_text(found: Difference | None) -> str:
    """`+1.26 [+0.11, +2.41]`."""
    return "" if found is None else f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def wide_table(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """One task's cells under given budgets, with a row a method and two columns a budget; best mean over the budgets first."""
    summaries = [row for row in summarise(cells) if not row.own_size]
    teacher = full_precision(cells)
    sizes = sorted({row.budget_bytes for row in summaries})
    methods: dict[str, dict[int, Summary]] = {}
    for row in summaries:
        methods.setdefault(row.method, {})[row.budget_bytes] = row
    columns = ["method", "seeds"]
    for size in sizes:
        columns += [_budget_head(cells, size), f"minus {BASELINE} [95 %]"]
    top = ["full precision", "", *[points(teacher.full_precision), ""] * len(sizes), "", ""]
    ranked = sorted(methods.items(), key=lambda item: -float(np.mean([row.mean for row in item[1].values()])))
    return [*columns, "seconds", "peak MiB"], [top, *(_wide_row(name, rows, sizes) for name, rows in ranked)]


def _budget_head(cells: Sequence[Cell], size: int) -> str:
    """A budget in MiB, and where it counts the whole file by how much that shrinks."""
    cell = full_precision([cell for cell in cells if cell.budget_bytes == size and not cell.own_size])
    if cell.budget_counts != "file":
        return f"{mib_text(size)} MiB of the {cell.budget_counts}"
    return f"{cell.full_precision_bytes / size:.3g}x ({mib_text(size)} MiB)"


def own_table(cells: Sequence[Cell], matched: Sequence[Cell] = ()) -> tuple[list[str], list[list[str]]]:
    """One task's cells of recipes that fix their own size, smallest file first.

    `matched`: cells of other methods under budgets of these sizes; each gets a column, of the largest that is no larger.
    """
    beside = {name: [cell for cell in matched if cell.method == name] for name in sorted({cell.method for cell in matched})}
    columns = ["recipe of its own size", "seeds", "MiB", "metric"]
    for name in beside:
        columns += [f"{name} at its bytes", f"minus {name} [95 %]"]
    rows = []
    for row in sorted((row for row in summarise(cells) if row.own_size), key=lambda row: row.file_bytes):
        own = [cell for cell in cells if cell.own_size and (cell.method, cell.budget_bytes) == (row.method, row.budget_bytes)]
        text = [row.method, str(row.seeds), mib_text(row.file_bytes), f"{points(row.mean)}{_spread(row)}"]
        for others in beside.values():
            text += _beside(own, others)
        rows.append([*text, f"{row.seconds:.0f}", f"{row.peak_mib:.0f}"])
    return [*columns, "seconds", "peak MiB"], rows


def _beside(own: Sequence[Cell], others: Sequence[Cell]) -> list[str]:
    """The metric of the largest of `others` that is no larger than the smallest of `own`, and the difference to it."""
    smallest = min(cell.file_bytes for cell in own)
    size = max((c.budget_bytes for c in others if c.budget_bytes <= smallest), default=0)
    near = [c for c in others if c.budget_bytes == size and size > FULL_SHARE * smallest]
    if not near:
        return ["", ""]
    return [points(float(np.mean([cell.metric for cell in near]))), difference_text(against(own, near))]


def _wide_row(method: str, rows: dict[int, Summary], sizes: Sequence[int]) -> list[str]:
    texts = [method, str(max(row.seeds for row in rows.values()))]
    for size in sizes:
        row = rows.get(size)
        texts += ["", ""] if row is None else [_metric(row), difference_text(row.difference)]
    spent = float(np.median([row.seconds for row in rows.values()]))
    return [*texts, f"{spent:.0f}", f"{max(row.peak_mib for row in rows.values()):.0f}"]


def _metric(row: Summary) -> str:
    """Mean and range; where a file is much smaller than it might be, its size too."""
    smaller = f" at {mib_text(row.file_bytes)} MiB" if row.file_bytes < FULL_SHARE * row.budget_bytes else ""
    return f"{points(row.mean)}{_spread(row)}{smaller}"


def _spread(row: Summary) -> str:
    return f" [{points(row.smallest)}, {points(row.largest)}]" if row.seeds > 1 else ""


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, numbers flush right."""
    lines = [f"| {' | '.join(columns)} |", f"|---{'|---:' * (len(columns) - 1)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def title(cells: Sequence[Cell]) -> str:
    products = "" if cells[0].precision == "fp32" else f", trained with {cells[0].precision} products"
    return f"{cells[0].task}, {cells[0].metric_name}{products}"


def task_tables(cells: Sequence[Cell], matched: Sequence[Cell] = ()) -> list[str]:
    """One task's tables in Markdown: under the budgets, then of recipes that fix their own size; those that have rows."""
    fixed = any(cell.own_size for cell in cells)
    shared = any(not cell.own_size for cell in cells)
    return [*([markdown(*wide_table(cells))] if shared else []), *([markdown(*own_table(cells, matched))] if fixed else [])]


def report(cells: Sequence[Cell]) -> str:
    """Every task's table in Markdown, with a note on how to read it."""
    parts = []
    for task in sorted({cell.task for cell in cells}):
        own = [cell for cell in cells if cell.task == task]
        parts += [f"**{title(own)}**", *task_tables(own)]
    return "\n\n".join([*parts, NOTE]) + "\n"
