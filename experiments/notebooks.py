"""Run the notebooks top to bottom and keep their outputs: `python experiments/notebooks.py` (needs Chromium for the pictures)."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def run(path: Path, renderer: str = "plotly_mimetype") -> nbformat.NotebookNode:
    """A notebook with its outputs; `renderer` is plotly's. Raises CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    os.environ["PLOTLY_RENDERER"] = renderer  # plotly's own choice would put its 4.6 MiB of script into the outputs
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=300, startup_timeout=300, resources=where).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
    return notebook


def main() -> None:
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        nbformat.write(run(path, "plotly_mimetype+png"), path)  # the picture is for readers without scripts
        print(path.name)


if __name__ == "__main__":
    main()
