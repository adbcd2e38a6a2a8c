"""Whole runs on the tiny model and task: their arguments, in this process or in one of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoquant import cli, method
from autoquant.training.batches import encode

MACHINE = ["--device", "cpu", "--no-compile", "--threads", "1"]
TEACHER = ["--teacher.epochs", "4", "--teacher.patience", "8", "--teacher.learning-rate", "5e-3"]
STEPS = ["--search.steps", "16", "--recovery.steps", "12", "--recovery.mrem-steps", "8", "--recovery.mrem-modules", "2"]
FEWEST = ["--teacher.epochs", "1", "--search.steps", "2", "--recovery.steps", "2", "--search.calibration-samples", "32"]
FEWEST += ["--recovery.mrem-steps", "0"]
CONTROLS = ["uniform", "random", "reversed", "fisher"]


def task(model: Path, data: Path) -> list[str]:
    """The tiny model and the tiny task."""
    return ["--model", str(model), "--task", "sst2", "--data-dir", str(data)]


def rows_of(data: Path, count: int) -> list[tuple[str, int]]:
    """The first texts and labels of the tiny task's training file."""
    lines = (data / "SST-2" / "train.tsv").read_text("utf-8").splitlines()[1 : count + 1]
    return [(text, int(label)) for text, label in (line.split("\t") for line in lines)]


def search_arguments(model: Path, data: Path, run_dir: Path, *more: object) -> list[str]:
    """A search with few steps and without controls; `more` may override anything."""
    start = ["search", *task(model, data), *MACHINE, *FEWEST, "--max-length", "32", "--budget-ratio", "6", "--controls"]
    return [*start, "--run-dir", str(run_dir), *map(str, more)]


def reference_arguments(model: Path, data: Path, run_dir: Path, *more: object) -> list[str]:
    """A search with every stage and every control, whose teacher learns something."""
    return [*search_arguments(model, data, run_dir, *TEACHER, *STEPS, *more), "--controls", *CONTROLS]


def search(model: Path, data: Path, run_dir: Path, *more: object) -> dict[str, Any]:
    """Run it here; returns metrics.json."""
    cli.main(search_arguments(model, data, run_dir, *more))
    return metrics_of(run_dir)


def metrics_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "metrics.json").read_text("utf-8"))


def log_of(run_dir: Path) -> list[str]:
    path = run_dir / "metrics.jsonl"
    return path.read_text("utf-8").splitlines() if path.exists() else []


def stages_of(run_dir: Path) -> list[str]:
    """Stages that logged a step, in their order."""
    return list(dict.fromkeys(json.loads(line)["stage"] for line in log_of(run_dir)))


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "autoquant.cli", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], patience: float = 500.0) -> None:
    """Poll until it holds; fail with what the process said if it ends before, or after `patience` seconds."""
    end = time.monotonic() + patience
    while not condition():
        assert process.poll() is None, f"it ended with {process.returncode}: {process.stderr.read()}"
        assert time.monotonic() < end
        time.sleep(0.002)


def refusal(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        cli.main(list(arguments))
    errors = capsys.readouterr().err
    assert exit_.value.code == 2
    assert errors.startswith("autoquant: ")
    assert errors.endswith("\n")
    assert errors.count("\n") == 1
    return errors


@dataclass(frozen=True)
class Reference:
    """A finished run with every stage and control; `simulated` [rows, 2] are the logits before it was packed."""

    run_dir: Path
    model: Path
    data: Path
    simulated: np.ndarray

    @property
    def model_dir(self) -> Path:
        return self.run_dir / "model"

    @property
    def metrics(self) -> dict[str, Any]:
        return metrics_of(self.run_dir)

    def bytes(self, name: str) -> bytes:
        return (self.model_dir / name).read_bytes()


@pytest.fixture(scope="session")
def reference(tiny_model_dir: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Read it; do not write into it. Made once, whichever files import it."""
    return _reference(tiny_model_dir, tiny_data, tmp_path_factory.getbasetemp() / "reference")


@cache
def _reference(model: Path, data: Path, run_dir: Path) -> Reference:
    simulated: dict[str, np.ndarray] = {}
    measure = method.simulated_logits

    def keep(workspace: Any, supernet: Any, allocation: Any, encoded: Any) -> np.ndarray:
        blueprint = workspace.blueprint
        evaluation = encode(blueprint.source.tokenizer, blueprint.data.evaluation, blueprint.max_length)
        simulated.setdefault("first", measure(workspace, supernet, allocation, evaluation))
        return measure(workspace, supernet, allocation, encoded)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "simulated_logits", keep)
        cli.main(reference_arguments(model, data, run_dir))
    return Reference(run_dir, model, data, simulated["first"])
