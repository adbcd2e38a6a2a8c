"""The notebooks run top to bottom and draw what they say."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from autoquant.pareto.report import as_sweep
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
    if RESULTS.exists():
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
