"""The commands as a person types them."""

import ast
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import autoquant
from architectures import save_tiny
from autoquant import cli
from autoquant.core.settings import load_preset
from autoquant.strategies.race import CANDIDATES
from runs import MACHINE, TEACHER, Reference, metrics_of, reference, refusal, search, search_arguments, stages_of, start, task

__all__ = ["reference"]

COMMANDS = ["plan", "finetune", "search", "apply", "refine", "evaluate", "pareto", "pareto-worker", "select", "compare", "report"]
COMMANDS += ["export", "bench"]


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, "--help"])
    assert exit_.value.code == 0
    assert f"Example: autoquant {command}" in capsys.readouterr().out


def test_every_option_of_the_commands_says_what_it_is_for() -> None:
    """Each is followed by a docstring in the source, which tyro shows."""
    modules = [ast.parse(path.read_text("utf-8")) for path in Path(cli.__file__).parent.glob("*.py")]
    parts = ("data", "budget", "machine", "recipe", "teacher")  # settings with options of their own
    silent = [
        f"{node.name}.{field.target.id}"
        for module in modules
        for node in module.body
        if isinstance(node, ast.ClassDef)
        for field, after in pairwise(node.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.target.id not in parts
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]
    assert silent == []


def test_help_works_without_torch(tmp_path: Path) -> None:
    """The console command, in a process where heavy packages cannot be imported."""
    for name in ("torch", "transformers", "datasets", "sklearn"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('too heavy for --help')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "autoquant.cli"]
    done = subprocess.run([*command, "--help"], env=environment, capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)
    assert done.stderr == ""


def test_the_console_command_exists() -> None:
    done = subprocess.run([Path(sys.executable).parent / "autoquant", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: autoquant")


def test_help_into_a_reader_that_leaves() -> None:
    """As `autoquant --help | head -1` does, once head is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "autoquant.cli", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([])
    assert exit_.value.code == 2


# From a bare encoder to a measured file


def test_finetune_search_evaluate(
    tiny_model_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--task", "sst2", "--data-dir", str(tiny_data)]
    teacher, run_dir = tmp_path / "fine" / "teacher", tmp_path / "run"
    model = ["--model", str(tiny_model_dir)]
    cli.main(["finetune", *model, *files, *MACHINE, *TEACHER, "--max-length", "32", "--output", str(tmp_path / "fine")])
    result = metrics_of(tmp_path / "fine")
    assert result["fine_tuned"] is True
    assert result["validation"] > 0.9
    assert f"Teacher in {teacher}: validation" in capsys.readouterr().out
    metrics = search(teacher, tiny_data, run_dir, "--controls", "uniform")
    assert stages_of(run_dir) == ["search-dnas", "retrain-dnas", "retrain-uniform"]
    assert (run_dir / "teacher" / "model.safetensors").read_bytes() == (teacher / "model.safetensors").read_bytes()
    assert capsys.readouterr().err == ""
    cli.main(["evaluate", str(run_dir / "model"), *files])
    assert json.loads(capsys.readouterr().out) == {"accuracy": metrics["metric"]["value"]}


def test_a_search_fine_tunes_as_finetune_does(
    reference: Reference, tiny_model_dir: Path, tiny_data: Path, tmp_path: Path
) -> None:
    files = [*task(tiny_model_dir, tiny_data), "--max-length", "32"]
    cli.main(["finetune", *files, *MACHINE, *TEACHER, "--output", str(tmp_path / "fine")])
    ours = (tmp_path / "fine" / "teacher" / "model.safetensors").read_bytes()
    assert ours == (reference.run_dir / "teacher" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["dnas", "uniform", "reversed"])
def test_evaluate_gives_the_reported_metric(reference: Reference, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = reference.model_dir if method == "dnas" else reference.run_dir / "controls" / method
    cli.main(["evaluate", str(folder), "--task", "sst2", "--data-dir", str(reference.data)])
    assert json.loads(capsys.readouterr().out) == reference.metrics["all_metrics"][method]


def test_a_table_and_the_time_left_are_shown(reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search(reference.run_dir / "teacher", reference.data, tmp_path / "run", "--controls", "uniform")
    out = capsys.readouterr().out
    metrics = metrics_of(tmp_path / "run")
    for row in ("full precision", "uniform", "ours (dnas)"):
        assert sum(line.startswith(f"│ {row}") for line in out.splitlines()) == 1
    assert f"{metrics['bytes']['file']:,}" in out
    assert "Search: 2 steps, stage 3 of 5, about" in out  # its model is a teacher already
    assert f"Shipped: {tmp_path / 'run' / 'model'}" in out


def test_a_process_of_its_own_says_nothing_on_stderr(reference: Reference, tmp_path: Path) -> None:
    """No warnings of the libraries either: stderr is for the one line of an error."""
    process = start(search_arguments(reference.run_dir / "teacher", reference.data, tmp_path / "run"))
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0
    assert errors == ""
    assert "Shipped" in out


# Other architectures


@pytest.mark.parametrize("name", ["distilbert", "roberta"])
def test_an_architecture_from_end_to_end(name: str, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny(name, tmp_path / name)
    more = ["--controls", "uniform", "--trim-positions", "--recovery.mrem-steps", "2", "--recovery.mrem-modules", "2"]
    metrics = search(model, tiny_data, tmp_path / "run", *more)
    folder = tmp_path / "run" / "model"
    assert stages_of(tmp_path / "run") == ["search-dnas", "retrain-dnas", "mrem-s-dnas", "retrain-uniform", "mrem-s-uniform"]
    assert metrics["bytes"]["file"] == (folder / "model.safetensors").stat().st_size <= metrics["bytes"]["full_precision"] / 6
    files = ["--task", "sst2", "--data-dir", str(tiny_data)]
    for packed in (folder, tmp_path / "run" / "controls" / "uniform"):
        cli.main(["evaluate", str(packed), *files])
    capsys.readouterr()
    options = ["--model", str(tmp_path / "run" / "teacher"), *files, *MACHINE, "--run-dir", str(tmp_path / "again")]
    cli.main(["apply", str(folder / "allocation.json"), *options])
    assert (tmp_path / "again" / "model" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    long = "the film was very great and this plot is lovely " * 20
    assert autoquant.load(folder).predict([long])[0] in ("negative", "positive")
    assert autoquant.load(folder).logits([("a film", "a plot")]).shape == (1, 2)


def test_bf16_products_end_in_other_weights_of_as_many_bytes(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    files = []
    for precision in ("fp32", "bf16"):
        options = ["--precision", precision, "--recovery.mrem-steps", "2", "--recovery.mrem-modules", "2"]
        metrics = search(tiny_classifier_dir, tiny_data, tmp_path / precision, *options)
        files.append(tmp_path / precision / "model" / "model.safetensors")
        budget = metrics["bytes"]["full_precision"] / 6
        assert 0.98 * budget < metrics["bytes"]["file"] == files[-1].stat().st_size <= budget
    assert files[0].read_bytes() != files[1].read_bytes()
    assert all(np.isfinite(tensor).all() for tensor in load_file(files[1]).values())


# Presets and spaces


@pytest.mark.parametrize("presets", [["--preset", "quick", "--preset", "aqbert"], ["--preset=quick", "--preset=aqbert"]])
def test_of_two_presets_the_last_is_taken_whole(presets: list[str]) -> None:
    found = cli.parse(["search", *presets])
    assert isinstance(found, cli.Search)
    assert (found.preset, found.recipe) == ("aqbert", load_preset("aqbert"))


def test_options_override_the_preset(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text('space = "layer"\n[search]\nsteps = 3\nbatch_size = 8\n[recovery]\nsteps = 5\n', "utf-8")
    files = [*task(tiny_classifier_dir, tiny_data), *MACHINE, "--max-length", "32", "--budget-ratio", "6", "--controls"]
    run_dir = tmp_path / "run"
    cli.main(["search", "--preset", str(preset), *files, "--search.steps", "2", "--run-dir", str(run_dir)])
    settings = json.loads((run_dir / "run.json").read_text("utf-8"))["settings"]["recipe"]
    assert settings["space"] == "layer"
    assert settings["search"]["steps"] == 2
    assert settings["search"]["batch_size"] == 8
    assert settings["recovery"]["steps"] == 5
    manifest = json.loads((run_dir / "model" / "allocation.json").read_text("utf-8"))
    assert manifest["space"]["name"] == "layer"
    assert all(len(m["bits"]) == 1 for m in manifest["matrices"] if m["layer"] is not None)


def test_a_space_of_ones_own(
    tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that began with another one of that name does not go on with this one."""
    space = tmp_path / "mine.toml"
    space.write_text("[default]\nbits = [2, 4]\ngroups = 2\n[classifier]\nbits = [8]\ngroups = 1\n", "utf-8")
    search(tiny_classifier_dir, tiny_data, tmp_path / "run", "--space", space)
    manifest = json.loads((tmp_path / "run" / "model" / "allocation.json").read_text("utf-8"))
    widths = {bits for matrix in manifest["matrices"] for bits in matrix["bits"]}
    assert widths == {2, 4, 8}
    space.write_text(space.read_text("utf-8").replace("groups = 2", "groups = 4"), "utf-8")
    arguments = search_arguments(tiny_classifier_dir, tiny_data, tmp_path / "run", "--space", space, "--resume")
    assert "space.rules" in refusal(arguments, capsys)


def test_every_paper_s_strategy_in_one_run(reference: Reference, tmp_path: Path) -> None:
    short = {
        "hessian-slices": 2,
        "hessian-samples": 8,
        "power-iterations": 2,
        "trace-vectors": 2,
        "trials": 3,
        "trial-samples": 16,
        "requantise-every": 2,
    }
    others = ("hawq", "bp-nas", "bsq", "optuna")
    more = [part for name, value in short.items() for part in (f"--search.{name}", value)]
    run_dir = tmp_path / "run"
    metrics = search(
        reference.run_dir / "teacher", reference.data, run_dir, "--search.strategy", "qbert", "--controls", *others, *more
    )
    budget = json.loads((run_dir / "model" / "allocation.json").read_text("utf-8"))["budget"]["bytes"]
    assert metrics["strategy"] == "qbert"
    for folder in ("model", *(f"controls/{name}" for name in others)):
        assert 0.9 * budget < (run_dir / folder / "model.safetensors").stat().st_size <= budget, folder


def test_a_race_ships_its_winner(reference: Reference, tmp_path: Path) -> None:
    more = ("--search.strategy", "race", "--search.race-steps", 3, "--recovery.exchange", 0.3)
    search(reference.run_dir / "teacher", reference.data, tmp_path / "run", *more, "--controls", *CANDIDATES)
    losses = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["race"]
    assert {"dnas", "uniform"} <= set(losses) <= set(CANDIDATES)  # after few steps a search has the bits of its prior
    winner = min(losses, key=losses.__getitem__)
    shipped = [tmp_path / "run" / folder / "model.safetensors" for folder in ("model", f"controls/{winner}")]
    ours, theirs = ({name: a.tolist() for name, a in load_file(file).items() if "layout" in name} for file in shipped)
    assert ours
    assert ours == theirs  # the bits
    report = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert f"{losses[winner]:.4f}" in report


@pytest.mark.parametrize("strategy", ["uniform", "fisher"])
def test_another_strategy_may_be_ours(
    strategy: str, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--search.strategy", strategy, "--controls", "uniform")
    metrics = search(reference.run_dir / "teacher", reference.data, tmp_path / "run", *more)
    assert metrics["strategy"] == strategy
    assert f"ours ({strategy})" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "run" / "model" / "allocation.json").read_text("utf-8"))
    assert manifest["strategy"] == strategy
    assert all(matrix["probability"] is None for matrix in manifest["matrices"])
