"""Whole comparisons on the tiny model: every cell measured once, kept at once, and checked against its packed file."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from autoquant import cli, inference, pipeline
from autoquant.cli.options import BudgetOptions
from autoquant.compare import run as module
from autoquant.compare.cells import COLUMNS, Cell, read_cells
from autoquant.compare.methods import resolve_methods
from autoquant.core.cost import SizeBudget
from autoquant.core.errors import TrainingError
from autoquant.core.files import file_sha256
from autoquant.core.progress import SilentProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import load_preset
from autoquant.machine import Machine
from autoquant.tasks.load import load_glue
from autoquant.tasks.metrics import METRICS
from runs import MACHINE, Reference, log_of, metrics_of, reference, refusal, start, task

__all__ = ["reference"]

STEPS = ["--teacher.epochs", "1", "--search.steps", "2", "--recovery.steps", "3", "--recovery.mrem-steps", "2"]
FEW = [*STEPS, "--recovery.mrem-modules", "2", "--search.calibration-samples", "32", "--max-length", "32"]
BUDGETS = "0.018,0.024"
PRESET = """
quantizer = "minmax"
[search]
strategy = "uniform"
calibration_samples = 32
[recovery]
steps = 0
mrem_steps = 0
"""


def arguments(reference: Reference, run_dir: Path, *more: object) -> list[str]:
    files = task(reference.run_dir / "teacher", reference.data)
    return ["compare", *files, *MACHINE, *FEW, "--budget-mib", BUDGETS, "--run-dir", str(run_dir), *map(str, more)]


@pytest.fixture
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.getbasetemp() / "plain.toml"
    file.write_text(PRESET, "utf-8")
    return file


@pytest.fixture
def finished(reference: Reference, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished comparison: read it, do not write into it."""
    run_dir = tmp_path_factory.getbasetemp() / "comparison"
    if not (run_dir / "compare.md").exists():
        cli.main(arguments(reference, run_dir, "--methods", "dnas", "uniform", preset, "--seeds", "2"))
    return run_dir


def test_a_row_a_method_budget_and_seed(finished: Path) -> None:
    table = pd.read_csv(finished / "compare.csv")
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == 3 * 2 * 2
    assert not table.duplicated(["method", "budget_bytes", "seed"]).any()
    assert set(table.method) == {"dnas", "uniform", "plain"}
    assert set(table.task) == {"sst2"}
    assert (table.file_bytes <= table.budget_bytes).all()
    assert (table.file_bytes > 0.98 * table.budget_bytes).all()
    assert (table.seconds > 0).all()
    assert (table.peak_mib > 50).all()
    assert set(table[table.method == "plain"].recovery_steps) == {0}
    assert set(table[table.method != "plain"].recovery_steps) == {3 + 2 * 2}


def test_a_cell_is_made_with_its_own_seed_as_the_comparison_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def search(*_: Any, **options: Any) -> None:
        asked.update(options)
        raise InterruptedError

    parts = SimpleNamespace(teacher="teacher", for_run=lambda *of: of)
    monkeypatch.setattr(pipeline, "search", search)
    monkeypatch.setattr(module.Bench, "parts", parts)
    recipe, budget, machine = load_preset("default"), SizeBudget(2**20, "encoder"), Machine("cpu", 1, compile=False)
    bench = module.Bench(tmp_path, "model", None, None, recipe, (budget,), 32, True, machine, SilentProgress())  # type: ignore[arg-type]
    (method,) = resolve_methods(["fisher"], recipe)
    with pytest.raises(InterruptedError):
        bench.measure(module.Task(method, budget, 3))
    assert asked["shared"] == (method.recipe, budget, 3)
    assert (asked["recipe"], asked["budget"], asked["seed"], asked["controls"]) == (method.recipe, budget, 3, ())
    assert (asked["max_length"], asked["trim_positions"], asked["machine"]) == (32, True, machine)
    assert asked["run_dir"] == tmp_path / "cells" / "fisher-1MiB-seed3"


def test_a_table_of_the_first_seed_is_there_before_the_second_begins(
    tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "_measure_all", lambda _, tasks, __: asked.extend(task.name for task in tasks) or [])
    budgets = [BudgetOptions(budget_mib=size).resolve() for size in (0.024, 0.018)]
    options = {"max_length": 32, "machine": Machine("cpu", 1, compile=False), "run_dir": tmp_path / "run"}
    data, methods = load_glue("sst2", tiny_data), ["uniform", "fisher"]
    module.compare(tiny_classifier_dir, data, budgets=budgets, methods=methods, seeds=(1, 0), **options)  # type: ignore[arg-type]
    cells = [f"{method}-{size}MiB" for method in methods for size in (0.018, 0.024)]
    assert asked == [f"{cell}-seed{seed}" for seed in (1, 0) for cell in cells]


def test_a_cell_is_what_its_packed_file_says(finished: Path, reference: Reference) -> None:
    cells = read_cells(finished / "results")
    data = load_glue("sst2", reference.data)
    assert {cell.teacher_hash for cell in cells} == {file_sha256(reference.run_dir / "teacher" / "model.safetensors")}
    for cell in cells:
        size = f"{cell.budget_bytes / 2**20:.4g}"
        folder = finished / "cells" / f"{cell.method}-{size}MiB-seed{cell.seed}"
        assert cell.file_bytes == (folder / "model" / "model.safetensors").stat().st_size
        assert cell.metric == metrics_of(folder)["metric"]["value"]
        assert cell.metric == METRICS[cell.metric_name](cell.answers, np.asarray(cell.labels))
        assert np.array_equal(cell.labels, data.evaluation.labels)
        assert not (folder / "checkpoint").exists()
    predictor = inference.load(finished / "cells" / "dnas-0.018MiB-seed1" / "model")
    (cell,) = [c for c in cells if (c.method, c.budget_bytes, c.seed) == ("dnas", int(0.018 * 2**20), 1)]
    assert predictor.logits(data.evaluation.first).argmax(axis=1).tolist() == list(cell.predictions)


def test_one_search_a_seed_serves_both_budgets(finished: Path) -> None:
    for seed in (0, 1):
        logged = [line for folder in (finished / "shared").glob(f"seed{seed}-*") for line in log_of(folder)]
        assert sum('"search-dnas"' in line for line in logged) == 2
        cells = [c for c in read_cells(finished / "results") if (c.method, c.seed) == ("dnas", seed)]
        (shared,) = [f for f in (finished / "shared").glob(f"seed{seed}-*") if any('"search-dnas"' in line for line in log_of(f))]
        search = RunDirectory(shared).seconds()["search-dnas"]
        assert all(cell.seconds > search for cell in cells)  # as if each had run alone
    assert not any('"search-dnas"' in line for folder in (finished / "cells").iterdir() for line in log_of(folder))


def test_a_control_that_turns_a_search_around_counts_it(reference: Reference, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    cli.main(arguments(reference, run_dir, "--budget-mib", "0.018", "--methods", "reversed", "bp-nas"))
    cells = {cell.method: cell for cell in read_cells(run_dir / "results")}
    folders = [*(run_dir / "shared").glob("seed0-*"), *(run_dir / "cells").iterdir()]
    searches = [RunDirectory(folder).seconds().get("search-dnas", 0.0) for folder in folders]
    assert cells["reversed"].seconds > sum(searches) > 0
    assert cells["reversed"].derived_bytes is None
    assert cells["bp-nas"].derived_bytes is not None


def test_the_table_is_there_for_people(finished: Path, reference: Reference, capsys: pytest.CaptureFixture[str]) -> None:
    text = (finished / "compare.md").read_text("utf-8")
    assert "**sst2, accuracy**" in text
    assert sum(line.startswith("| dnas | 2 |") for line in text.splitlines()) == 1
    before = (finished / "compare.csv").read_bytes()
    cli.main(arguments(reference, finished, "--methods", "dnas", "--seeds", "1", "--resume"))
    said = capsys.readouterr().out
    assert "Cells: 2 of 2 done, 0 failed." in said
    assert "minus uniform [95 %]" in said
    assert (finished / "compare.csv").read_bytes() == before


def test_sigkill_costs_the_cell_under_way_at_most(finished: Path, reference: Reference, preset: Path, tmp_path: Path) -> None:
    run_dir, methods = tmp_path / "killed", ["--methods", "dnas", "uniform", preset, "--checkpoint-seconds", "0"]
    process = start(arguments(reference, run_dir, *methods))
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Cells: 2 of 6 done"):
                break
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    kept = {file: file.stat().st_mtime_ns for file in (run_dir / "results").iterdir()}
    assert len(kept) >= 2
    assert len(pd.read_csv(run_dir / "compare.csv")) in (2, len(kept))  # a table of what is there
    cli.main(arguments(reference, run_dir, *methods, "--resume"))
    assert all(file.stat().st_mtime_ns == then for file, then in kept.items())
    ours = {(c.method, c.budget_bytes): c.predictions for c in read_cells(run_dir / "results")}
    whole = {(c.method, c.budget_bytes): c.predictions for c in read_cells(finished / "results") if c.seed == 0}
    assert ours == whole


@pytest.mark.parametrize(
    ("error", "reason"),
    [(TrainingError("Loss is not finite."), "Loss is not finite."), (RuntimeError("No\nmemory"), "RuntimeError: No memory")],
)
def test_a_cell_that_fails_does_not_stop_the_others(
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    reason: str,
) -> None:
    measure, broken = module.Bench.measure, True

    def sometimes(bench: module.Bench, task: module.Task) -> Cell:
        if broken and task.name == "uniform-0.018MiB-seed0":
            raise error
        return measure(bench, task)

    monkeypatch.setattr(module.Bench, "measure", sometimes)
    said = refusal(arguments(reference, tmp_path / "run", "--methods", "uniform"), capsys)
    assert f"1 of 2 cells failed (uniform-0.018MiB-seed0: {reason}): --resume tries them again." in said
    assert len(pd.read_csv(tmp_path / "run" / "compare.csv")) == 1
    broken = False
    cli.main(arguments(reference, tmp_path / "run", "--methods", "uniform", "--resume"))
    assert len(pd.read_csv(tmp_path / "run" / "compare.csv")) == 2


def test_cells_kept_elsewhere_are_not_measured_again(finished: Path, reference: Reference, tmp_path: Path) -> None:
    asked = cli.parse(arguments(reference, tmp_path / "run"))
    assert isinstance(asked, cli.Compare)

    def again(run_dir: Path, **changes: object) -> list[Cell]:
        return module.compare(
            asked.model,
            asked.data.load(),
            budgets=[BudgetOptions(budget_mib=size).resolve() for size in (0.018, 0.024)],
            methods=["uniform"],
            recipe=asked.recipe,
            run_dir=run_dir,
            max_length=asked.max_length,
            machine=asked.machine.resolve(),
            results=finished / "results",
            **changes,  # type: ignore[arg-type]
        )

    assert again(tmp_path / "run") == read_cells(finished / "results")
    assert not (tmp_path / "run" / "cells").exists()


# What is refused


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "best"], "Unknown method 'best'; known are strategies"),
        (["--methods", "uniform", "uniform"], "uniform is given twice"),
        (["--budget-mib", "a"], "--budget-mib a are not numbers: give e.g. --budget-mib 4,6"),
        (["--budget-mib", "0.02,0.02"], "A budget is given twice: 0.02, 0.02 MiB"),
        (["--budget-mib", "900"], "is not below full precision"),
        (["--budget-mib"], "uniform needs budgets: give --budget-mib 4,6 or --budget-ratio 15,25"),
        (["--budget-mib", "0.001"], "Budget 0.00 MiB is below the smallest allocation"),
        (["--seeds", "0"], "give one or more"),
        (["--preset", "nonsense"], "No preset 'nonsense'"),
    ],
)
def test_bad_input_is_one_line_before_any_training(
    more: list[str], message: str, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(arguments(reference, tmp_path / "run", *more), capsys)
    assert not (tmp_path / "run").exists()


def own_preset(folder: Path, name: str, bits: str) -> Path:
    """A preset with a space of its own."""
    (folder / f"{name}-space.toml").write_text(f'name = "{name}"\n[default]\nbits = {bits}\ngroups = 1\n', "utf-8")
    file = folder / f"{name}.toml"
    file.write_text(f'space = "{folder / name}-space.toml"\n{PRESET}', "utf-8")
    return file


def test_what_no_allocation_meets_is_left_out_and_a_fixed_size_is_measured_once(
    reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide, fixed = own_preset(tmp_path, "wide", "[4, 8]"), own_preset(tmp_path, "fixed", "[8]")
    cli.main(arguments(reference, tmp_path / "run", "--budget-mib", "0.018,0.03", "--methods", wide, fixed))
    assert "Left out: wide at 0.018 MiB. Budget 0.02 MiB is below the smallest allocation" in capsys.readouterr().out
    cells = {cell.method: cell for cell in read_cells(tmp_path / "run" / "results")}
    assert len(cells) == 2
    assert cells["wide"].budget_bytes == int(0.03 * 2**20)
    assert not cells["wide"].own_size
    assert cells["fixed"].own_size
    assert all(cell.budget_counts == "file" and cell.calibration_seconds > 0 for cell in cells.values())
    assert cells["fixed"].budget_bytes == cells["fixed"].file_bytes
    assert "| fixed | 1 |" in (tmp_path / "run" / "compare.md").read_text("utf-8")


def test_a_comparison_is_not_begun_twice_nor_changed(
    finished: Path, reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "use --resume" in refusal(arguments(reference, finished), capsys)
    changed = arguments(reference, finished, "--resume", "--recovery.steps", "7")
    assert "recipe.recovery.steps: was 3, now 7" in refusal(changed, capsys)


def test_cells_of_another_recipe_are_not_taken_over(
    finished: Path, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "results").mkdir(parents=True)
    old = next((finished / "results").glob("*uniform-0.018*seed0.json"))
    changed = json.loads(old.read_text("utf-8"))
    changed["recipe"]["recovery"]["steps"] = 99
    (run_dir / "results" / old.name).write_text(json.dumps(changed), "utf-8")
    said = refusal(arguments(reference, run_dir, "--methods", "uniform"), capsys)
    assert "was made with another recipe: move it elsewhere" in said


def test_a_recipe_changed_in_its_file_is_said_though_every_cell_is_there(
    reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what a kill after the last cell left behind is cleared away."""
    file, run_dir = tmp_path / "mine.toml", tmp_path / "run"
    file.write_text(PRESET, "utf-8")
    cli.main(arguments(reference, run_dir, "--budget-mib", "0.018", "--methods", file))
    (left,) = (folder / "checkpoint" for folder in (run_dir / "cells").iterdir())
    left.mkdir()
    cli.main(arguments(reference, run_dir, "--budget-mib", "0.018", "--methods", file, "--resume"))
    assert not left.exists()
    file.write_text(PRESET.replace("minmax", "lsq"), "utf-8")
    said = refusal(arguments(reference, run_dir, "--budget-mib", "0.018", "--methods", file, "--resume"), capsys)
    assert "mine-0.018MiB-seed0.json was made with another recipe: move it elsewhere" in said


def test_cells_of_another_space_by_its_name_are_not_taken_over(
    finished: Path, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Older cells, which do not say what it was, are."""
    (tmp_path / "run" / "results").mkdir(parents=True)
    old = next((finished / "results").glob("*uniform-0.018*seed0.json"))
    cell = json.loads(old.read_text("utf-8"))
    cell["space"]["rules"]["query"]["groups"] = 7
    (tmp_path / "run" / "results" / old.name).write_text(json.dumps(cell), "utf-8")
    said = refusal(arguments(reference, tmp_path / "run", "--methods", "uniform"), capsys)
    assert "was made with another space: move it elsewhere" in said


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [("teacher_hash", "0" * 64, "teacher"), ("precision", "bf16", "precision"), ("labels", [0], "evaluation rows")],
)
def test_cells_that_could_not_stand_beside_new_ones_are_said_before_any_is_measured(
    finished: Path, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: object, what: str
) -> None:
    """Even those of methods that are not asked for."""
    run_dir = tmp_path / "run"
    (run_dir / "results").mkdir(parents=True)
    old = next((finished / "results").glob("*uniform-0.018*seed0.json"))
    changed = json.loads(old.read_text("utf-8")) | {key: value}
    (run_dir / "results" / old.name).write_text(json.dumps(changed), "utf-8")
    said = refusal(arguments(reference, run_dir, "--methods", "fisher"), capsys)
    assert f"was made with another {what}: move it elsewhere" in said
    assert [file.name for file in (run_dir / "results").iterdir()] == [old.name]
