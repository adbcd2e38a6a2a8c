"""The tables of the comparison's and the other tools' cells; `python experiments/tables.py` puts them into the READMEs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from autoquant.compare.cells import Cell, read_cells
from autoquant.compare.table import NOTE, markdown, own_table, points, title, wide_table
from autoquant.core.cost import mib_text
from compare import CELLS, MATCHED, RATIOS, RESULTS, TASKS, planned

PEERS = RESULTS / "peers"
DEFAULT, DEFAULT_BEFORE = RESULTS / "default" / CELLS.name, RESULTS / "default-400" / CELLS.name
NO_CELLS = "No cells yet: run `python experiments/compare.py --data-dir glue`."


def methods_table() -> str:
    """Method x budget of every task, with what is missing."""
    cells = read_cells(CELLS)
    if not cells:
        return NO_CELLS
    return f"{_under_budgets(cells)}\n\n{NOTE} {_missing(cells)}"


def default_table(folder: Path = DEFAULT) -> str:
    """The default recipe beside uniform bits, under a teacher of their own."""
    return _under_budgets(read_cells(folder)) or NO_CELLS


def recipes_table() -> str:
    """Recipes that fix their own size, of every task, beside `uniform` and `dnas` at the bytes of their files."""
    cells, matched = read_cells(CELLS), read_cells(MATCHED)
    parts = []
    for own in _by_task([cell for cell in cells if cell.own_size]):
        beside = [cell for cell in matched if cell.task == own[0].task]
        parts.append(f"**{title(own)}**\n\n{markdown(*own_table(own, beside))}")
    return "\n\n".join(parts) or NO_CELLS


def _under_budgets(cells: Sequence[Cell]) -> str:
    return "\n\n".join(f"**{title(own)}**\n\n{markdown(*wide_table(own))}" for own in _by_task(cells))


def _by_task(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of every task that has some."""
    return [own for own in ([cell for cell in cells if cell.task == task] for task in TASKS) if own]


def _missing(cells: Sequence[Cell]) -> str:
    """How many cells there are, and what is missing: whole tasks, whole methods, or some of their seeds."""
    there = Counter((cell.task, cell.method, cell.seed) for cell in cells)
    fixed, texts = {cell.method for cell in cells if cell.own_size}, []
    for task in TASKS:
        methods = []
        for name, seeds in planned():
            wanted = 1 if name in fixed else len(RATIOS)
            lacking = [(seed, there[task, name, seed]) for seed in seeds if there[task, name, seed] < wanted]
            some = [f"{seed} in part" if count else str(seed) for seed, count in lacking]
            wholly = len(lacking) == len(seeds) and not any(count for _, count in lacking)
            methods += [name if wholly else f"{name} (seed {', '.join(some)})"] if some else []
        untouched = task not in {cell.task for cell in cells}
        texts += [f"{task}: {'everything' if untouched else ', '.join(methods)}"] if methods else []
    counted = f"{len(cells)} cells."
    return f"{counted} Not measured yet, or not to be had at these sizes: {'; '.join(texts)}." if texts else counted


def linears_table() -> str:
    """Only the linear layers: each tool beside ours at the same bytes there, whose embeddings are at 8 bits.

    Seconds of ours contain the calibration, as the tools' do.
    """
    peers = _peers()
    if not peers:
        return "No cells yet: run `python experiments/peers/run.py --data-dir glue --teacher DIR`."
    columns = ["", "bits", "linear bytes", *_heads(), "seconds", "peak MiB"]
    rows, ours = [], read_cells(PEERS / "ours")
    for cell in peers:
        bits, size = f"{cell.recipe['linear_bits']:.2f}", f"{cell.recipe['linear_bytes']:,}"
        rows.append([_name(cell), bits, size, *_numbers(cell)])
        alike = mib_text(cell.recipe["linear_bytes"])
        beside = [own for own in ours if own.task == cell.task and mib_text(own.budget_bytes) == alike]
        rows += [[_ours(own), "", f"{own.budget_bytes:,}", *_numbers(own)] for own in beside]
    return markdown(columns, rows)


def whole_table() -> str:
    """The whole file: recounted, and as each tool writes it."""
    peers = _peers()
    if not peers:
        return "No cells yet."
    columns = ["", "MiB, recounted", "MiB of its own file", *_heads(), "seconds", "peak MiB"]
    rows = []
    for cell in peers:
        own = mib_text(cell.recipe["own_file_bytes"])
        rows.append([_name(cell), mib_text(cell.file_bytes), own, *_numbers(cell)])
    for cell in _ours_whole():
        rows.append([_ours(cell), mib_text(cell.file_bytes), mib_text(cell.file_bytes), *_numbers(cell)])
    return markdown(columns, rows)


def _peers() -> list[Cell]:
    return read_cells(PEERS)


def _ours_whole() -> list[Cell]:
    """`dnas`, first seed, under both budgets, on the tasks that the tools were measured on."""
    tasks = {cell.task for cell in _peers()}
    found = [cell for cell in read_cells(CELLS) if (cell.method, cell.seed) == ("dnas", 0) and cell.task in tasks]
    return sorted(found, key=lambda cell: (cell.task, -cell.budget_bytes))


def _name(cell: Cell) -> str:
    return f"{cell.method} ({cell.recipe['version']}; activations {cell.recipe['activations']})"


def _ours(cell: Cell) -> str:
    products = "" if cell.precision == "fp32" else f"; trained with {cell.precision} products"
    bits = cell.recipe["activation_bits"]
    activations = "float32" if bits == 32 else f"int{bits}, dynamic"
    return f"ours ({cell.method}; activations {activations}{products})"


def _heads() -> list[str]:
    return ["task", "full precision", "metric"]


def _numbers(cell: Cell) -> list[str]:
    spent = cell.seconds + cell.calibration_seconds
    return [cell.task, points(cell.full_precision), points(cell.metric), f"{spent:.0f}", f"{cell.peak_mib:.0f}"]
