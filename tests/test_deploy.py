"""Exporting a finished run and measuring what was written, as a person types it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autoquant import cli
from autoquant.core.files import file_sha256
from autoquant.deploy import export_run
from runs import Reference, metrics_of, reference, reference_arguments

__all__ = ["reference"]


@pytest.fixture
def run_dir(reference: Reference, tmp_path: Path) -> Path:
    """A finished run to write into."""
    return shutil.copytree(reference.run_dir, tmp_path / "run")


def data_of(reference: Reference) -> list[str]:
    return ["--data-dir", str(reference.data), "--task", "sst2"]


def test_export_measures_the_file_it_wrote(reference: Reference, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["export", str(run_dir), *data_of(reference)])
    path, metrics = run_dir / "model" / "model.onnx", metrics_of(run_dir)
    entry = metrics["deployed"]["onnx-int8"]
    assert (entry["bytes"], entry["sha256"]) == (path.stat().st_size, file_sha256(path))
    others = {name: value for name, value in metrics["deployed"].items() if name != "onnx-int8"}
    size = {**metrics["bytes"], "directory": reference.metrics["bytes"]["directory"]}  # the folder has grown
    assert {**metrics, "deployed": others, "bytes": size} == reference.metrics
    assert f"accuracy of the file {entry['metrics']['accuracy']:.4f}" in capsys.readouterr().out
    card = (run_dir / "model" / "README.md").read_text("utf-8")
    assert f"| model.onnx | {entry['bytes']:,} | `{entry['sha256']}` |" in card
    (lines,) = re.findall(r"With onnxruntime:\n\n```python\n(.*?)\n```", card, re.DOTALL)
    out = subprocess.run([sys.executable, "-c", lines], cwd=path.parent, capture_output=True, text=True, check=True).stdout
    assert "array([[" in out
    cli.main(["evaluate", str(run_dir / "model"), "--format", "onnx", *data_of(reference)])
    assert json.loads(capsys.readouterr().out) == entry["metrics"]


def test_both_tails_are_recorded(reference: Reference, run_dir: Path) -> None:
    cli.main(["export", str(run_dir), "--tail", "fp32", *data_of(reference)])
    cli.main(["export", str(run_dir), *data_of(reference)])
    exact, fast = (metrics_of(run_dir)["deployed"][f"onnx-{tail}"] for tail in ("fp32", "int8"))
    assert exact["logit_difference"]["max"] < 1e-4
    assert fast["logit_difference"]["mean"] < 0.02
    assert exact["file"] == "model_fp32.onnx"
    assert exact["float_activation_metrics"] == exact["simulated_metrics"] == fast["float_activation_metrics"]
    assert fast["simulated_metrics"] == reference.metrics["all_metrics"]["dnas"]
    assert fast["metrics"]["accuracy"] >= fast["simulated_metrics"]["accuracy"] - 1 / 80  # of 80 rows one may be a tie
    files = [file.stat().st_size for file in (run_dir / "model").iterdir()]
    assert metrics_of(run_dir)["bytes"]["directory"] == sum(files)


def test_a_finished_run_that_is_resumed_keeps_its_exports(reference: Reference, run_dir: Path) -> None:
    cli.main(["export", str(run_dir), *data_of(reference)])
    before = metrics_of(run_dir)["deployed"]
    cli.main(reference_arguments(reference.model, reference.data, run_dir, "--resume"))
    assert metrics_of(run_dir)["deployed"] == before
    assert before["onnx-int8"]["sha256"] in (run_dir / "model" / "README.md").read_text("utf-8")
    (run_dir / "model" / "model.onnx").unlink()
    cli.main(reference_arguments(reference.model, reference.data, run_dir, "--resume"))
    assert list(metrics_of(run_dir)["deployed"]) == ["safetensors"]


def test_the_data_is_that_of_the_run(run_dir: Path) -> None:
    cli.main(["export", str(run_dir)])
    assert "metrics" in metrics_of(run_dir)["deployed"]["onnx-int8"]


def test_data_that_is_gone_leaves_it_unmeasured(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = json.loads((run_dir / "run.json").read_text("utf-8"))
    info["data_source"]["data_dir"] = str(run_dir / "gone")
    (run_dir / "run.json").write_text(json.dumps(info), "utf-8")
    cli.main(["export", str(run_dir)])
    assert set(metrics_of(run_dir)["deployed"]["onnx-int8"]) == {"file", "bytes", "sha256"}
    said = capsys.readouterr().out
    assert "Note: the run's data is not where it was. No folder" in said
    assert "Not measured: give the data" in said


def test_rows_in_memory_leave_it_unmeasured(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = json.loads((run_dir / "run.json").read_text("utf-8"))
    del info["data_source"]
    (run_dir / "run.json").write_text(json.dumps(info), "utf-8")
    (run_dir / "metrics.json").write_text(json.dumps({**metrics_of(run_dir), "task": "files"}), "utf-8")
    cli.main(["export", str(run_dir)])
    assert "Not measured: give the data" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", '{"task": "sst2"}'])
@pytest.mark.parametrize("command", ["export", "bench", "report"])
def test_damaged_metrics_are_one_line(command: str, text: str, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "metrics.json").write_text(text, "utf-8")
    assert "metrics.json is damaged: delete it and run again with --resume" in refusal([command, str(run_dir)], capsys)


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == cli.EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_other_data_is_refused(
    reference: Reference, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(reference.data, tmp_path / "other")
    dev = other / "SST-2" / "dev.tsv"
    dev.write_text("\n".join(dev.read_text().splitlines()[:-1]) + "\n")
    error = refusal(["export", str(run_dir), "--task", "sst2", "--data-dir", str(other)], capsys)
    assert "not those of" in error
    assert not (run_dir / "model" / "model.onnx").exists()


def test_folders_that_are_no_finished_run(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no run" in refusal(["export", str(tmp_path)], capsys)
    (run_dir / "metrics.json").unlink()
    assert "no finished search" in refusal(["export", str(run_dir)], capsys)


def test_evaluate_without_an_exported_file(reference: Reference, capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal(["evaluate", str(reference.model_dir), "--format", "onnx", *data_of(reference)], capsys)
    assert "model.onnx" in error


def test_export_needs_a_known_format(run_dir: Path) -> None:
    with pytest.raises(KeyError):
        export_run(run_dir, "gguf")


@pytest.mark.parametrize(("tail", "attribute", "message"), [("fp32", "EXACT", "should be exact"), ("int8", "TOLERATED", "cost")])
def test_a_file_that_is_worse_than_it_should_be_is_warned_of(
    reference: Reference,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tail: str,
    attribute: str,
    message: str,
) -> None:
    cli.main(["export", str(run_dir), "--tail", tail, *data_of(reference)])
    assert "Warning" not in capsys.readouterr().out
    monkeypatch.setattr(f"autoquant.deploy.{attribute}", -1.0)
    cli.main(["export", str(run_dir), "--tail", tail, *data_of(reference)])
    assert re.search(f"Warning: .*{message}", capsys.readouterr().out)
