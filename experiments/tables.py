"""Make the result tables of the READMEs from the measured cells; says which cells are missing.

    python experiments/tables.py            # print
    python experiments/tables.py --write    # put them into README.md and experiments/README.md, between their markers
    python experiments/tables.py --write --only ablation default    # these tables alone, without the pictures
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro
from ablation_tables import CHANGES, ablation_table, changed_answers_table, changes_table, foretold_table
from bench_export import export_table
from compare_plot import plot_compare
from compare_tables import DEFAULT_BEFORE, default_table, linears_table, methods_table, recipes_table, whole_table
from deployment_tables import deployment_table
from lasting import lasting_table
from mrem_tables import mrem_settings_table, mrem_table, plot_mrem
from paper_tables import known_cells
from paper_tables import tables as paper_tables

from autoquant.assets import default_backbone
from autoquant.compare.cells import read_cells, write_csv
from compare import CELLS, CSV

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "experiments" / "README.md")


@dataclass(frozen=True)
class Options:
    write: bool = False
    """Replace the tables in the pages, and results/compare.csv and the pictures."""
    only: tuple[str, ...] = ()
    """Make only these tables, and neither results/compare.csv nor the pictures."""


TABLES: dict[str, Callable[[], str]] = {
    "compare": methods_table,
    "compare-default": default_table,
    "compare-default-before": partial(default_table, DEFAULT_BEFORE),
    "compare-recipes": recipes_table,
    "papers": lambda: paper_tables(known_cells(default_backbone().name), measured_only=True),
    "peers-linear": linears_table,
    "peers-whole": whole_table,
    "ablation": ablation_table,
    "changed-answers": changed_answers_table,
    "foretold": foretold_table,
    **{name: partial(changes_table, name) for name in CHANGES},
    "export": export_table,
    "lasting": lasting_table,
    "deployment": deployment_table,
    "mrem": mrem_table,
    "mrem-settings": mrem_settings_table,
}
"""Name of a place -> its table in Markdown."""


def put(texts: dict[str, str], name: str, table: str) -> dict[str, str]:
    """The pages with the table between its markers. Raises SystemExit unless there is one place for it in all of them."""
    pattern, found = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- /table -->)", re.DOTALL), 0
    filled = dict[str, str]()
    for page, text in texts.items():
        filled[page], places = pattern.subn(lambda match: f"{match[1]}{table}\n{match[2]}", text)
        found += places
    if found != 1:
        raise SystemExit(f"{' and '.join(texts)} have {found} places for the table '{name}'.")
    return filled


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    unknown = sorted({*options.only} - {*TABLES})
    if unknown:
        raise SystemExit(f"No table '{unknown[0]}'; known are {', '.join(TABLES)}.")
    texts = {str(page.relative_to(ROOT)): page.read_text("utf-8") for page in PAGES}
    for name in options.only or TABLES:
        table = TABLES[name]()
        print(table)
        texts = put(texts, name, table)
    if options.write and not options.only:
        write_csv(read_cells(CELLS), CSV)
        plot_mrem()
        plot_compare()
    if options.write:
        for page, text in texts.items():
            (ROOT / page).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
