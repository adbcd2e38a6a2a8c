"""A run that is killed at any moment goes on to the same bytes; what must not go on is refused in one line."""

import json
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from autoquant import cli
from autoquant.refine import mrem
from autoquant.strategies import dnas
from runs import Reference, log_of, reference, reference_arguments, refusal, search, search_arguments, start, wait_for

__all__ = ["reference"]

STAGES = ["teacher", "search-dnas", "retrain-dnas", "mrem-s-uniform"]
PATIENCE = 120.0  # seconds


@contextmanager
def running(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the test."""
    process = start(arguments)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def steps_logged(run_dir: Path, stage: str) -> int:
    return sum(f'"stage": "{stage}"' in line for line in log_of(run_dir))


def interrupt(run_dir: Path, arguments: list[str], stage: str, steps: int, signal_: signal.Signals) -> tuple[int, str]:
    """Send the signal once `stage` has logged so many steps; returns the exit code and stderr."""
    with running(arguments) as process:
        wait_for(lambda: steps_logged(run_dir, stage) >= steps, process)
        process.send_signal(signal_)
        _, errors = process.communicate(timeout=PATIENCE)
    assert not (run_dir / "metrics.json").exists()
    return process.returncode, errors


def assert_same(run_dir: Path, reference: Reference) -> None:
    for name in ("model/model.safetensors", "model/allocation.json", "teacher/model.safetensors"):
        assert (run_dir / name).read_bytes() == (reference.run_dir / name).read_bytes(), name
    for control in ("uniform", "random", "reversed", "fisher"):
        name = f"controls/{control}/model.safetensors"
        assert (run_dir / name).read_bytes() == (reference.run_dir / name).read_bytes(), name
    assert log_of(run_dir) == log_of(reference.run_dir)


def test_sigkill_in_every_stage_changes_nothing(reference: Reference, tmp_path: Path) -> None:
    """One directory, killed in one stage after the other, against a run that nobody disturbed, in another process."""
    draw = random.Random()
    run_dir = tmp_path / "run"
    options = ["--checkpoint-seconds", "0"]
    for stage in STAGES:
        arguments = reference_arguments(reference.model, reference.data, run_dir, *options)
        steps = draw.randint(1, 10)
        code, _ = interrupt(run_dir, arguments, stage, steps, signal.SIGKILL)
        assert code == -signal.SIGKILL
        options = ["--checkpoint-seconds", "0", "--resume"]
    cli.main(reference_arguments(reference.model, reference.data, run_dir, *options))
    assert_same(run_dir, reference)


def test_sigkill_between_checkpoints_repeats_the_steps_since(reference: Reference, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = reference_arguments(reference.model, reference.data, run_dir, "--checkpoint-seconds", "1000")
    interrupt(run_dir, arguments, "search-dnas", 5, signal.SIGKILL)
    cli.main([*arguments, "--resume"])
    assert_same(run_dir, reference)


def test_ctrl_c_is_one_line_and_resumable(reference: Reference, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = reference_arguments(reference.model, reference.data, run_dir)
    code, errors = interrupt(run_dir, arguments, "search-dnas", 4, signal.SIGINT)
    assert code == 130
    assert errors == "autoquant: interrupted; the run goes on with --resume.\n"
    assert (run_dir / "checkpoint" / "search-dnas.pt").exists()  # though the minute between checkpoints was not over
    cli.main([*arguments, "--resume"])
    assert_same(run_dir, reference)


# What is refused


def test_ctrl_c_in_a_later_refiner_does_not_redo_the_earlier_one(reference: Reference, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = reference_arguments(reference.model, reference.data, run_dir)
    loss, calls = mrem.hidden_loss, iter(range(1000))

    def interrupting(*inputs: Any) -> torch.Tensor:
        if next(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return loss(*inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mrem, "hidden_loss", interrupting)
        with pytest.raises(SystemExit, match="130"):
            cli.main(arguments)
    cli.main([*arguments, "--resume"])
    assert_same(run_dir, reference)


def test_a_second_process_is_refused(
    tiny_model_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    arguments = search_arguments(tiny_model_dir, tiny_data, run_dir, "--search.steps", 5000)
    with running(arguments) as process:
        wait_for(lambda: steps_logged(run_dir, "search-dnas") > 0, process)
        assert f"in use by process {process.pid}" in refusal([*arguments, "--resume"], capsys)
        assert process.poll() is None


@pytest.fixture
def unfinished(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of a run that was interrupted in its search."""
    losses, calls = dnas.distillation_loss, iter(range(100))

    def interrupted(*arguments: Any) -> torch.Tensor:
        if next(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return losses(*arguments)

    arguments = search_arguments(tiny_classifier_dir, tiny_data, tmp_path / "run", "--search.steps", 8)
    with monkeypatch.context() as patch:
        patch.setattr(dnas, "distillation_loss", interrupted)
        with pytest.raises(SystemExit, match="130"):
            cli.main(arguments)
    assert (tmp_path / "run" / "checkpoint" / "search-dnas.pt").exists()
    return arguments


def test_without_resume_a_run_is_not_touched(unfinished: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "already holds a run (unfinished): use --resume" in refusal(unfinished, capsys)


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--seed", "1", "seed: was 0, now 1"),
        ("--max-length", "30", "max_length: was 32, now 30"),
        ("--search.steps", "9", "recipe.search.steps: was 8, now 9"),
        ("--budget-ratio", "5", "budget.bytes"),
        ("--controls", "random", "controls"),
        ("--train-rows", "100", "data.train"),
    ],
)
def test_other_settings_are_refused(
    unfinished: list[str], option: str, value: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal([*unfinished, "--resume", option, value], capsys)
    assert "was started with other settings" in message
    assert named in message


def test_another_pace_of_checkpoints_is_no_other_setting(unfinished: list[str], tmp_path: Path) -> None:
    cli.main([*unfinished, "--resume", "--checkpoint-seconds", "5"])
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"not a checkpoint", lambda raw: b""])
def test_a_corrupt_checkpoint_is_named(
    unfinished: list[str], damage: Callable[[bytes], bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / "checkpoint" / "search-dnas.pt"
    path.write_bytes(damage(path.read_bytes()))
    message = refusal([*unfinished, "--resume"], capsys)
    assert f"{path} is damaged or no checkpoint: delete it" in message
    path.unlink()
    cli.main([*unfinished, "--resume"])
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_flipped_bit_in_a_checkpoint_is_seen(unfinished: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run" / "checkpoint" / "search-dnas.pt"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))
    assert "is damaged or no checkpoint" in refusal([*unfinished, "--resume"], capsys)


def test_a_checkpoint_of_another_run_is_refused(
    unfinished: list[str],
    tiny_classifier_dir: Path,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    search(tiny_classifier_dir, tiny_data, tmp_path / "other")
    foreign = tmp_path / "other" / "checkpoint" / "search-dnas-result.pt"
    (tmp_path / "run" / "checkpoint" / "search-dnas.pt").write_bytes(foreign.read_bytes())
    assert "belongs to a run with other settings" in refusal([*unfinished, "--resume"], capsys)


def test_a_changed_teacher_is_noticed(
    unfinished: list[str], reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main([*unfinished, "--resume"])
    other = (reference.run_dir / "teacher" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "teacher" / "model.safetensors").write_bytes(other)
    assert "teacher changed since" in refusal([*unfinished, "--resume"], capsys)


def test_damaged_run_files_are_named(unfinished: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file = tmp_path / "run" / "run.json"
    info = json.loads(run_file.read_text("utf-8"))
    run_file.write_text("{", "utf-8")
    assert f"{run_file} is damaged" in refusal([*unfinished, "--resume"], capsys)
    run_file.write_text(json.dumps(info), "utf-8")
    stages = tmp_path / "run" / "checkpoint" / "stages.json"
    stages.write_text(stages.read_text("utf-8")[:-20], "utf-8")
    assert f"{stages} is damaged" in refusal([*unfinished, "--resume"], capsys)
