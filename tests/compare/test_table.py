"""Means, spread and differences by hand."""

import pytest

from autoquant.compare.bootstrap import Difference
from autoquant.compare.table import (
    COLUMNS,
    against,
    difference_text,
    markdown,
    own_table,
    report,
    summarise,
    table,
    title,
    wide_table,
)
from comparisons import small_cell

RIGHT, THREE, TWO = (0, 1, 1, 0), (0, 1, 1, 1), (1, 1, 1, 1)  # how many of the four labels they meet


def test_seeds_fold_to_mean_and_spread() -> None:
    cells = [small_cell("fisher", 0, RIGHT, seconds=10.0), small_cell("fisher", 1, TWO, seconds=40.0, peak_mib=400.0)]
    cells.append(small_cell("fisher", 2, THREE, seconds=25.0, file_bytes=1_999_000))
    (row,) = summarise(cells)
    assert (row.seeds, row.mean, row.smallest, row.largest) == (3, 0.75, 0.5, 1.0)
    assert (row.seconds, row.peak_mib, row.file_bytes) == (25.0, 400.0, 2_000_000)
    assert row.difference is None


def test_best_first_within_a_budget() -> None:
    cells = [small_cell("uniform", 0, THREE), small_cell("fisher", 0, TWO), small_cell("default", 0, RIGHT)]
    cells.append(small_cell("fisher", 0, RIGHT, budget_bytes=2**20))
    assert [(row.budget_bytes, row.method) for row in summarise(cells)] == [
        (2**20, "fisher"),
        (2**21, "default"),
        (2**21, "uniform"),
        (2**21, "fisher"),
    ]


def test_the_difference_is_over_seeds_that_both_have() -> None:
    ours = [small_cell("fisher", 0, RIGHT), small_cell("fisher", 1, TWO), small_cell("fisher", 2, TWO)]
    uniform = [small_cell("uniform", 1, THREE), small_cell("uniform", 0, TWO)]
    found = against(ours, uniform)
    assert found is not None
    assert found.mean == pytest.approx(((1.0 - 0.5) + (0.5 - 0.75)) / 2)
    assert against(ours, [small_cell("uniform", 5)]) is None
    rows = {row.method: row for row in summarise([*ours, *uniform])}
    assert rows["fisher"].difference == found
    assert rows["uniform"].difference is None


def test_another_budget_is_no_baseline() -> None:
    rows = summarise([small_cell("fisher"), small_cell("uniform", budget_bytes=2**20)])
    assert all(row.difference is None for row in rows)


def test_what_people_read() -> None:
    rows = table([small_cell("fisher", 0, RIGHT), small_cell("fisher", 1, TWO), small_cell("uniform", 0, THREE)])
    assert all(len(row) == len(COLUMNS) for row in rows)
    by_name = {row[0]: row for row in rows}
    assert by_name["full precision"][2:5] == ("30,000,000", "", "100.00")
    assert by_name["fisher"][:5] == ("fisher", "2", "2,000,000", "2", "75.00 [50.00, 100.00]")
    assert by_name["fisher"][5].startswith("+25.00 [")
    assert by_name["uniform"][4:] == ("75.00", "", "12", "345")
    assert difference_text(Difference(-0.0126, -0.025, 0.0)) == "-1.26 [-2.50, +0.00]"


def test_budgets_side_by_side() -> None:
    small = {"budget_bytes": 2**20, "file_bytes": 2**19}
    cells = [small_cell("uniform", 0, THREE), small_cell("fisher", 0, RIGHT), small_cell("fisher", 0, TWO, **small)]
    columns, (full, *rows) = wide_table(cells)
    sizes = ["28.6x (1 MiB)", "minus uniform [95 %]", "14.3x (2 MiB)", "minus uniform [95 %]"]
    assert columns == ["method", "seeds", *sizes, "seconds", "peak MiB"]
    assert full == ["full precision", "", "100.00", "", "100.00", "", "", ""]
    by_name = {row[0]: row for row in rows}
    assert by_name["fisher"][:5] == ["fisher", "1", "50.00 at 0.5 MiB", "", "100.00 at 1.907 MiB"]
    assert by_name["fisher"][5].startswith("+25.00 [")
    assert by_name["uniform"][2:6] == ["", "", "75.00 at 1.907 MiB", ""]


def test_methods_side_by_side_are_ranked_by_their_mean_over_the_budgets() -> None:
    """Seeds are the most that a budget has, seconds a median over the budgets, memory the largest."""
    small = {"budget_bytes": 2**20}
    cells = [small_cell("uniform", 0, TWO, seconds=1.0, peak_mib=300.0), small_cell("uniform", 0, THREE, seconds=4.0, **small)]
    cells += [small_cell("fisher", seed, THREE, **small) for seed in (0, 1)] + [small_cell("fisher", 0, THREE)]
    cells += [small_cell("default", 0, RIGHT), small_cell("default", 0, THREE, **small)]
    _, (_, *rows) = wide_table(cells)
    assert [row[:2] for row in rows] == [["default", "1"], ["fisher", "2"], ["uniform", "1"]]
    assert rows[2][-2:] == ["2", "345"]


def test_a_budget_of_the_encoder_is_no_share_of_the_file() -> None:
    recipe = small_cell("fixed", own_size=True, budget_counts="codes")  # says nothing of the others' budget
    columns, _ = wide_table([recipe, small_cell("uniform", budget_counts="encoder")])
    assert columns[2] == "2 MiB of the encoder"
    columns, _ = wide_table([recipe, small_cell("a-student", full_precision_bytes=15_000_000), small_cell("uniform")])
    assert columns[2] == "14.3x (2 MiB)"


def test_recipes_of_their_own_size_have_a_table_of_their_own() -> None:
    fixed = small_cell("gobo-3-4-32", 0, RIGHT, own_size=True, budget_bytes=123, file_bytes=2**20)
    student = {"full_precision": 0.5, "full_precision_bytes": 15_000_000}
    cells = [fixed, small_cell(), small_cell("distil-2.0", 0, TWO, own_size=True, budget_bytes=99, **student)]
    assert own_table(cells)[1] == [
        ["gobo-3-4-32", "1", "1", "100.00", "12", "345"],
        ["distil-2.0", "1", "1.907", "50.00", "12", "345"],
    ]
    columns, (full, uniform) = wide_table(cells)
    assert (len(columns), full[2], uniform[0]) == (6, "100.00", "uniform")
    text = report(cells)
    assert text.index("| uniform |") < text.index("| gobo-3-4-32 |")
    assert "minus uniform [95 %]" not in report([fixed])


def test_recipes_of_their_own_size_stand_beside_the_largest_file_that_is_no_larger() -> None:
    fixed = [small_cell(name, 0, RIGHT, own_size=True, file_bytes=size) for name, size in (("gobo-3-4-32", 1000), ("tiny", 10))]
    sizes = {"fisher": (990, 1001), "uniform": (960,)}
    matched = [
        small_cell(name, 0, TWO if size == 990 else RIGHT, budget_bytes=size, file_bytes=size)
        for name, some in sizes.items()
        for size in some
    ]
    columns, (tiny, gobo) = own_table([*fixed, *matched], matched)
    assert columns[4:8] == ["fisher at its bytes", "minus fisher [95 %]", "uniform at its bytes", "minus uniform [95 %]"]
    assert tiny[4:8] == ["", "", "", ""]
    assert gobo[4] == "50.00"  # the file of 990 bytes; that of 1,001 would be larger
    assert gobo[5].startswith("+50.00 [")
    assert gobo[6:8] == ["", ""]  # 960 bytes are too few to compare


def test_markdown() -> None:
    assert markdown(["a", "b"], [["x", "1"]]) == "| a | b |\n|---|---:|\n| x | 1 |"
    text = report([small_cell(file_bytes=2**21), small_cell(task="mrpc", file_bytes=2**21)])
    assert text.index("**mrpc, accuracy**") < text.index("**sst2, accuracy**")
    assert text.count("| uniform | 1 | 75.00 |") == 2
    assert "paired bootstrap" in text


def test_the_title_says_how_cells_were_trained() -> None:
    assert title([small_cell()]) == "sst2, accuracy"
    assert title([small_cell(precision="bf16")]) == "sst2, accuracy, trained with bf16 products"
