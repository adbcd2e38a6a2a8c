"""Whole sweeps on the tiny model: shared parts, results that can be built again, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import optuna
import pytest
from huggingface_hub import ModelCard
from optuna.trial import TrialState

from autoquant import cli, pipeline
from autoquant.cli.options import numbers
from autoquant.core.errors import RunError
from autoquant.core.files import file_sha256
from autoquant.machine import Machine
from autoquant.pareto import study as studies
from autoquant.pareto.settings import SweepSettings, make_plan, spread_budgets
from autoquant.pareto.sweep import collect, sweep
from autoquant.pareto.trials import claim, count, enqueue_missing
from autoquant.reports.results import Missing, Point, Sweep
from autoquant.shared import pivot_budget
from autoquant.tasks.load import load_glue
from runs import FEWEST, MACHINE, Reference, log_of, metrics_of, reference, refusal, task
from whole_sweeps import CELLS, arguments, finished, settings_of, sqlite, trials_of

__all__ = ["finished", "reference"]


def sizes(command: cli.Pareto) -> tuple[int, ...]:
    return spread_budgets(numbers(command.budgets, "--budgets", "3"), None)


def test_every_cell_is_a_point_with_its_run(finished: Path) -> None:
    found = Sweep.read(finished)
    assert [p.cell for p in found.points] == CELLS
    for point in found.points:
        metrics = metrics_of(finished / "trials" / point.cell)
        assert point.metric == metrics["metric"]["value"]
        assert point.file_bytes == (finished / "trials" / point.cell / "model" / "model.safetensors").stat().st_size
        assert 0.98 * point.budget_bytes < point.file_bytes <= point.budget_bytes
        assert (finished / "trials" / point.cell / "report.html").exists()
    assert any(c.on_front for c in found.configurations)
    assert (finished / "report.html").exists()
    assert (finished / "pareto.parquet").exists()


def test_one_search_serves_every_budget(finished: Path) -> None:
    shared = list((finished / "shared").glob("seed*-*/"))
    assert len(shared) == 1
    assert any('"search-dnas"' in line for line in log_of(shared[0]))
    for cell in CELLS:
        assert not any('"search-dnas"' in line or '"teacher"' in line for line in log_of(finished / "trials" / cell))


def test_the_budget_of_the_search_gets_what_a_search_of_its_own_finds(
    finished: Path, reference: Reference, tmp_path: Path
) -> None:
    sizes = spread_budgets([0.018, 0.024], None)
    size = pivot_budget(sizes)
    alone = tmp_path / "alone"
    files = [*task(reference.run_dir / "teacher", reference.data), *MACHINE, *FEWEST, "--recovery.mrem-steps", "0"]
    fixed = ["--max-length", "32", "--budget-mib", repr(size / 2**20), "--controls", "--run-dir", str(alone)]
    cli.main(["search", *files, *fixed])
    (point,) = [p for p in Sweep.read(finished).points if p.strategy == "dnas" and p.budget_bytes == size]
    ours = finished / "trials" / point.cell / "model" / "model.safetensors"
    assert file_sha256(ours) == file_sha256(alone / "model" / "model.safetensors")
    there = json.loads((alone / "model" / "allocation.json").read_text("utf-8"))
    for theirs, mine in zip(there["matrices"], point.allocation["matrices"], strict=True):
        assert mine["bits"] == theirs["bits"]
        assert mine["probability"] == pytest.approx(theirs["probability"], abs=2e-4)


def test_a_point_is_built_again_to_the_same_file_and_number(finished: Path, reference: Reference, tmp_path: Path) -> None:
    """From pareto.json alone, the teacher and the data."""
    only = tmp_path / "copied"
    only.mkdir()
    shutil.copy(finished / "pareto.json", only / "pareto.json")
    for cell in (CELLS[0], CELLS[3]):
        (point,) = [p for p in Sweep.read(only).points if p.cell == cell]
        (only / f"{cell}.json").write_text(json.dumps(point.allocation), "utf-8")
        files = task(reference.run_dir / "teacher", reference.data)
        cli.main(["apply", str(only / f"{cell}.json"), *files, *MACHINE, "--run-dir", str(tmp_path / cell)])
        assert metrics_of(tmp_path / cell)["metric"]["value"] == point.metric
        assert file_sha256(tmp_path / cell / "model" / "model.safetensors") == point.allocation["hashes"]["file"]


def test_copies_of_what_is_shared_are_dropped(finished: Path) -> None:
    for cell in CELLS:
        assert not (finished / "trials" / cell / "teacher").exists()
        assert not (finished / "trials" / cell / "checkpoint").exists()


def test_a_finished_sweep_goes_on_to_nothing(finished: Path, reference: Reference, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "pareto.json").read_bytes()
    left = finished / "trials" / CELLS[0] / "checkpoint"  # as by a kill between a trial's result and its clearing up
    left.mkdir()
    cli.main(arguments(reference, finished, "--resume"))
    assert not left.exists()
    assert (finished / "pareto.json").read_bytes() == before
    assert "Sweep: 4 of 4 trials done, 0 running, 0 waiting, 0 failed" in capsys.readouterr().out
    assert len(trials_of(sqlite(finished), finished.name)) == 4


def test_the_command_in_the_report_is_the_sweep_s(finished: Path, reference: Reference) -> None:
    import shlex

    command = cli.parse(shlex.split(Sweep.read(finished).command)[1:])
    asked = cli.parse(arguments(reference, finished))
    assert isinstance(command, cli.Pareto)
    assert isinstance(asked, cli.Pareto)
    assert command.recipe == asked.recipe
    assert (command.strategies, command.seeds, command.model) == (asked.strategies, asked.seeds, asked.model)
    assert sizes(command) == sizes(asked)


def test_points_kept_as_cells_are_not_measured_again(finished: Path, reference: Reference, tmp_path: Path) -> None:
    before, asked = Sweep.read(finished), cli.parse(arguments(reference, tmp_path / "run"))
    assert isinstance(asked, cli.Pareto)
    before.write_cells(tmp_path / "cells")
    assert sorted(path.stem for path in (tmp_path / "cells").iterdir()) == CELLS

    def again(run_dir: Path, steps: int) -> Sweep:
        recovery = dataclasses.replace(asked.recipe.recovery, steps=steps)
        return sweep(
            asked.model,
            asked.data.load(),
            budgets=numbers(asked.budgets, "--budgets", "3"),
            recipe=dataclasses.replace(asked.recipe, recovery=recovery),
            run_dir=run_dir,
            max_length=asked.max_length,
            machine=asked.machine.resolve(),
            cells=tmp_path / "cells",
        )

    assert again(tmp_path / "run", 2).points == before.points
    assert not (tmp_path / "run" / "trials").exists()
    with pytest.raises(RunError, match="is there, but with another recovery, another recipe"):
        again(tmp_path / "other", 3)


def test_latency_is_measured_on_the_exported_file(reference: Reference, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    cli.main(arguments(reference, run_dir, "--latency", "--strategies", "uniform"))
    found = Sweep.read(run_dir)
    assert found.objectives == ("size", "metric", "latency")
    assert all(0 < point.latency_ms < 1000 for point in found.points)
    assert not list(run_dir.rglob("*.onnx"))  # nobody recorded one
    assert "latency ms" in (run_dir / "report.html").read_text("utf-8")
    (values,) = {tuple(t.values) for t in trials_of(sqlite(run_dir), "run") if t.user_attrs["cell"] == found.points[0].cell}
    assert values == (found.points[0].file_bytes, found.points[0].metric, found.points[0].latency_ms)


def test_fresh_searches_are_the_option(reference: Reference, tmp_path: Path) -> None:
    cli.main(arguments(reference, tmp_path / "run", "--no-reuse-search", "--strategies", "dnas"))
    for cell in ("dnas-0.018MiB-seed0", "dnas-0.024MiB-seed0"):
        assert any('"search-dnas"' in line for line in log_of(tmp_path / "run" / "trials" / cell))


def test_a_model_that_may_know_what_trials_are_judged_on_is_pointed_out(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("autoquant.pareto.sweep.run_worker", lambda *_: None)
    options = arguments(reference, tmp_path / "run", "--tune", "recovery.learning-rate=1e-4:1e-2", "--trials", "3")
    options += ["--strategies", "dnas", "--resume"]
    for model, known in ((reference.run_dir / "teacher", True), (reference.model, False)):
        options[options.index("--model") + 1] = str(model)
        options += ["--study", model.name]
        cli.main(options)
        assert ("Note: --model is fine-tuned already" in capsys.readouterr().out) == known


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_settings_are_tuned_without_the_evaluation_file(sampler: str, reference: Reference, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    tune = ["--tune", "recovery.learning-rate=1e-4:1e-2", "space=default,layer", "--trials", "3", "--sampler", sampler]
    cli.main(arguments(reference, run_dir, "--strategies", "dnas", *tune))
    found = Sweep.read(run_dir)
    assert [p.cell for p in found.points] == [f"trial-{i:04d}" for i in range(3)]
    assert {tuple(p.settings) for p in found.points} == {("recovery.learning-rate", "space")}
    assert "evaluation file was not read" in found.note
    for point in found.points:
        settings = json.loads((run_dir / "trials" / point.cell / "run.json").read_text("utf-8"))["settings"]
        recorded = json.loads((reference.run_dir / "run.json").read_text("utf-8"))["settings"]["data"]
        assert recorded["evaluation"] != settings["data"]["evaluation"]
        assert settings["recipe"]["recovery"]["learning_rate"] == point.settings["recovery.learning-rate"]
        assert settings["recipe"]["space"] == point.settings["space"]
    if sampler == "tpe":
        assert_a_tuned_point_is_built_and_exported_again(run_dir, found.points[0], reference, tmp_path)


def assert_a_tuned_point_is_built_and_exported_again(run_dir: Path, point: Point, reference: Reference, tmp_path: Path) -> None:
    """From the files as they are: the parts that the trial had are cut out of them again."""
    trial, again = run_dir / "trials" / point.cell, tmp_path / "again"
    data = ["--task", "sst2", "--data-dir", str(reference.data)]
    teacher = str(run_dir / "shared" / "teacher" / "teacher")
    cli.main(["apply", str(trial / "model" / "allocation.json"), "--model", teacher, *data, *MACHINE, "--run-dir", str(again)])
    assert metrics_of(again)["metric"]["value"] == point.metric
    assert file_sha256(again / "model" / "model.safetensors") == point.allocation["hashes"]["file"]
    cli.main(["export", str(trial), *data])
    card = ModelCard.load(trial / "model" / "README.md")
    assert {result.dataset_split for result in card.data.eval_results} == {"train"}


def test_a_failed_seed_is_missing_from_its_configuration(tmp_path: Path) -> None:
    settings = settings_of(strategies=("uniform",), seeds=(0, 1))
    study = studies.create_study(f"sqlite:///{tmp_path / 'study.db'}", "s", settings, resume=False)
    enqueue_missing(study, make_plan(settings))
    good, bad = (claim(study, make_plan(settings)) for _ in range(2))
    assert good is not None
    assert bad is not None
    point = Point("uniform-1MiB-seed0", "uniform", 0, 2**20, 2**20, 0.8)
    good.set_user_attr("point", {k: v for k, v in dataclasses.asdict(point).items() if k != "allocation"})
    good.set_user_attr("allocation", {})
    good.set_user_attr("full_precision", {"bytes": 2**22, "metric": 0.9, "name": "accuracy"})
    study.tell(good, [2**20, 0.8])
    bad.set_user_attr("error", "The loss is not finite.")
    study.tell(bad, state=TrialState.FAIL)
    found = collect(study, settings)
    assert found is not None
    assert found.missing == (Missing("uniform", 1, 2**20, "The loss is not finite."),)
    assert [c.on_front for c in found.configurations] == [False]


def test_a_resumed_sweep_tries_again_what_failed(
    tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []

    def fail(study: optuna.Study, settings: SweepSettings, *_: object) -> None:
        waiting.append(count(study, make_plan(settings)).waiting)
        trial = claim(study, make_plan(settings))
        assert trial is not None
        trial.set_user_attr("error", "The loss is not finite.")
        study.tell(trial, state=TrialState.FAIL)

    monkeypatch.setattr("autoquant.pareto.sweep.run_worker", fail)
    for resume in (False, True):
        sweep(
            tiny_classifier_dir,
            load_glue("sst2", tiny_data),
            budgets=[0.018],
            strategies=("uniform",),
            run_dir=tmp_path / "run",
            max_length=32,
            machine=Machine("cpu", 1, compile=False),
            resume=resume,
        )
    assert waiting == [1, 1]


HEADS_MAY_GO = ["--space", "structured", "--recovery.mrem-steps", "1", "--trials", "3", "--strategies", "dnas"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budgets", "a,b"], "--budgets a,b are not numbers"),
        (["--budgets", "-1"], "Give --budgets as sizes"),
        (["--budgets", "0.02,0.02"], "A budget is given twice: 0.02, 0.02"),
        (["--budgets", "0.001,0.02"], "is below the smallest allocation"),
        (["--budgets", "0.02", "--points", "4"], "--points takes 2 or more, between two sizes"),
        (["--strategies", "best"], "Unknown strategy 'best'"),
        (["--seeds", "-1"], "--seed -1 must lie between 0 and 4294967295"),
        (["--tune", "recovery.steps=1:5"], "--tune and --trials belong together"),
        (["--tune", "recovery.steps=5", "--trials", "3", "--strategies", "dnas"], "is no range"),
        (["--tune", "recovery.colour=1:5", "--trials", "3", "--strategies", "dnas"], "a recipe has no such setting"),
        (["--tune", "space=default,rowz", "--trials", "3", "--strategies", "dnas"], "rowz"),
        (["--tune", "recovery.steps=1:9.5", "--trials", "3", "--strategies", "dnas"], "9.5 is not of type int"),
        (["--tune", "recovery.learning-rate=1e-4:inf", "--trials", "3", "--strategies", "dnas"], "is no range"),
        (["--tune", "activation-bits=8:32", "--trials", "3", "--strategies", "dnas"], "is not one of 4, 8, 32"),
        (["--tune", "recovery.training=retrain,dance", "--trials", "3", "--strategies", "dnas"], "'dance' is not one of"),
        (["--tune", "teacher.epochs=1:3", "--trials", "3", "--strategies", "dnas"], "all trials have one teacher"),
        (["--tune", "search.strategy=dnas,fisher", "--trials", "3", "--strategies", "dnas"], "give --strategies"),
        (["--tune", "encoder-bits=2,4", "--trials", "3", "--strategies", "dnas"], "give --budgets"),
        ([*HEADS_MAY_GO, "--tune", "recovery.training=retrain,ternarybert"], "ternarybert needs every head"),
        ([*HEADS_MAY_GO, "--tune", "recovery.reconstruction=mrem-s,layer-wise"], "layer-wise needs every head"),
        (["--search.derive", "argmax"], "give --no-reuse-search"),
        (["--patience-seconds", "0"], "--patience-seconds 0 is too short"),
        (["--storage", "nosuchdb://x"], "is no storage"),
        (["--storage", "postgresql://me:secret@localhost:1/x"], "Cannot use the storage postgresql://me:***@localhost:1/x"),
    ],
)
def test_bad_input_is_one_line_before_any_training(
    more: list[str], message: str, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(arguments(reference, tmp_path / "run", *more), capsys)
    assert not (tmp_path / "run" / "trials").exists()


def test_a_sweep_is_not_begun_twice_nor_changed(finished: Path, reference: Reference, capsys: pytest.CaptureFixture[str]) -> None:
    assert "already holds a sweep 'sweep': use --resume" in refusal(arguments(reference, finished), capsys)
    changed = arguments(reference, finished, "--resume", "--recovery.steps", "7")
    assert "recipe.recovery.steps: was 2, now 7" in refusal(changed, capsys)


@pytest.mark.parametrize("kind", [ValueError, ImportError, FileNotFoundError])
def test_an_error_of_a_trial_is_not_the_storage_s(
    kind: type[Exception], reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*anything: object, **more: object) -> None:
        raise kind("odd")

    monkeypatch.setattr(pipeline, "search", odd)
    with pytest.raises(kind, match="odd"):
        cli.main(arguments(reference, tmp_path / "run", "--strategies", "uniform"))
