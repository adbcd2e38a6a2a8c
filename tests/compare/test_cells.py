"""Cells keep their numbers on disk, and do not mix with others."""

from pathlib import Path

import pandas as pd
import pytest

from autoquant.compare.cells import Cell, check_comparable, frame, read_cells, write_csv
from autoquant.core.errors import CheckpointError
from comparisons import small_cell

HEADER = "task,method,budget_bytes,file_bytes,metric,seed,seconds,peak_mib,recovery_steps,teacher_hash"


def test_a_cell_comes_back_as_it_was(tmp_path: Path) -> None:
    cell = small_cell(allocation={"words.weight": [8, 1]}, recipe={"space": "default"})
    cell.write(tmp_path / "a.json")
    assert Cell.read(tmp_path / "a.json") == cell
    assert read_cells(tmp_path) == [cell]
    assert read_cells(tmp_path / "nowhere") == []


def test_the_table_is_tidy(tmp_path: Path) -> None:
    cells = [small_cell("uniform", 1), small_cell("fisher", 0, (0, 1, 1, 0)), small_cell("uniform", 0)]
    write_csv(cells, tmp_path / "compare.csv")
    lines = (tmp_path / "compare.csv").read_text("utf-8").splitlines()
    assert lines[0] == HEADER
    assert lines[1] == f"sst2,fisher,2097152,2000000,1,0,12.5,345.25,600,{'a' * 64}"
    read = pd.read_csv(tmp_path / "compare.csv")
    assert read[["method", "seed"]].to_numpy().tolist() == [["fisher", 0], ["uniform", 0], ["uniform", 1]]
    assert read.equals(frame(cells).astype(read.dtypes.to_dict()))


def test_no_cells_is_a_header(tmp_path: Path) -> None:
    write_csv([], tmp_path / "compare.csv")
    assert (tmp_path / "compare.csv").read_text("utf-8") == HEADER + "\n"


@pytest.mark.parametrize("changes", [{"teacher_hash": "b" * 64}, {"labels": (1, 1, 1, 1)}, {"precision": "bf16"}])
def test_cells_that_do_not_compare_are_refused(changes: dict[str, object]) -> None:
    check_comparable([small_cell(), small_cell(task="mrpc", **changes)])
    with pytest.raises(CheckpointError, match=r"sst2 fisher seed 0 at 2097152 bytes and sst2 uniform seed 0 .* again"):
        check_comparable([small_cell(), small_cell("fisher", **changes)])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "autoquant-comparison-cell", "version": 1}', '{"format": 1}'])
def test_what_is_no_cell_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=r"a\.json is not the cell of a comparison .* move it elsewhere"):
        read_cells(tmp_path)
