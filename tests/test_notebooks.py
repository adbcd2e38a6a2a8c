"""The notebooks run top to bottom and draw what they say."""

import ast
import json
import shutil
import sys
from pathlib import Path

import nbformat
import pytest

from autoquant.reports.page import as_sweep
from runs import Reference, reference

__all__ = ["reference"]

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

from notebooks import NOTEBOOKS, run  # noqa: E402

RESULTS = ROOT / "experiments" / "results" / "pareto"


@pytest.mark.parametrize("name", ["quickstart", "pareto", "allocation"])
def test_a_notebook_runs(name: str, reference: Reference, tmp_path: Path) -> None:
    """On the committed results (before there are any, on a tiny run), in a copy: nothing of the repository is written."""
    results = tmp_path / "experiments" / "results" / "pareto"
    if any(RESULTS.glob("*.json")):
        shutil.copytree(RESULTS, results)
    else:
        manifest = json.loads((reference.model_dir / "allocation.json").read_text("utf-8"))
        as_sweep(reference.metrics, manifest).write_cells(results)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(NOTEBOOKS / f"{name}.ipynb", tmp_path / "notebooks")
    notebook = run(tmp_path / "notebooks" / f"{name}.ipynb")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    drawn = [output for cell in code for output in cell.outputs if "application/vnd.plotly.v1+json" in output.get("data", {})]
    assert len(drawn) == sum(cell.source.rstrip().splitlines()[-1].startswith("plots.") for cell in code)
    assert all(len(output["data"]["application/vnd.plotly.v1+json"]["data"]) > 0 for output in drawn)


@pytest.mark.parametrize("name", ["quickstart", "pareto", "allocation"])
def test_a_notebook_is_committed_with_its_outputs(name: str) -> None:
    if not any(RESULTS.glob("*.json")):
        pytest.skip("no committed sweep to draw yet")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    shown = [cell for cell in notebook.cells if cell.cell_type == "code" and shows(cell.source)]
    assert shown
    assert [cell.source for cell in shown if not cell.outputs] == [], "run experiments/notebooks.py and commit what it writes"


def shows(source: str) -> bool:
    """Whether a cell is meant to show something: it prints, or ends in an expression."""
    last = ast.parse(source).body[-1]
    return "print(" in source or isinstance(last, ast.Expr)

