"""The exported file beside the teacher in torch and ONNX Runtime: everything measured, nothing left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from architectures import save_tiny
from autoquant import bench, cli
from autoquant.backbones import BACKBONES
from autoquant.core.progress import TerminalProgress
from autoquant.export.onnx.baseline import write_dynamic_int8, write_float
from export_folders import random_batch
from runs import Reference, metrics_of, reference

__all__ = ["reference"]

CONTENDERS = set(bench.TITLES)


@pytest.fixture(scope="module")
def run_dir(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose file is exported."""
    copy = shutil.copytree(reference.run_dir, tmp_path_factory.mktemp("bench") / "run")
    cli.main(["export", str(copy), "--data-dir", str(reference.data), "--task", "sst2"])
    return copy


def test_everything_is_measured(
    reference: Reference, run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "LOADS", 1)
    monkeypatch.setattr(bench, "LOADED_TOKENS", 10_000)  # more than the model has positions
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    capsys.readouterr()
    data = ["--data-dir", str(reference.data), "--task", "sst2"]
    cli.main(["bench", str(run_dir), "--json", "--rounds", "2", "--threads", "1", *data])
    captured = capsys.readouterr()
    assert captured.err == ""
    result = json.loads(captured.out)
    assert result["threads"] == 1
    assert set(result["workloads"]) == {"1x32", "task"}  # the tiny model has 64 positions
    for key in ("bytes", "load_seconds", "peak_mib", "model_mib"):
        assert set(result[key]) == CONTENDERS
        assert min(result[key].values()) > 0
    for workload in result["workloads"].values():
        assert set(workload["milliseconds"]) == set(workload["speed"]) == CONTENDERS
        assert workload["speed"][bench.DYNAMIC] == 1
    deployed = metrics_of(run_dir)["deployed"]["onnx-int8"]
    assert result["bytes"][bench.OURS] == deployed["bytes"]
    assert result["metrics"][bench.OURS] == deployed["metrics"]
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    bench.show(result, TerminalProgress())
    table = capsys.readouterr().out
    assert all(title in table for title in bench.TITLES.values())


def test_one_that_is_twice_as_fast_has_speed_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds by a clock of ours: dynamic int8 takes 4, ours 2, in our graph 3."""
    now = [0.0]

    def taking(seconds: float) -> Callable[[bench.Batch], np.ndarray]:
        def compute(batch: bench.Batch) -> np.ndarray:
            now[0] += seconds
            return np.zeros((1, 2))

        return compute

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    computes = {bench.DYNAMIC: taking(4), bench.OURS: taking(2), bench.SAME_GRAPH: taking(3)}
    one = {"input_ids": np.zeros((8, 4), np.int64)}
    result = bench._time(computes, bench.Workload("8x4 twice", (one, one)), rounds=3)
    assert result["speed"] == {bench.DYNAMIC: 1, bench.OURS: 2, bench.SAME_GRAPH: pytest.approx(4 / 3)}
    assert result["speed_in_same_graph"] == {bench.OURS: 1.5}
    assert result["milliseconds"][bench.OURS] == 2000
    assert result["texts_per_second"][bench.OURS] == 4


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("model_type", sorted(BACKBONES))
def test_the_baseline_is_the_teacher(model_type: str, plain: bool, tmp_path: Path) -> None:
    folder = save_tiny(model_type, tmp_path / "teacher")
    teacher = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = {name: values for name, values in random_batch(3, 9).items() if name in BACKBONES[model_type].inputs}
    with torch.no_grad():
        wanted = teacher(**{name: torch.from_numpy(values) for name, values in batch.items()}).logits.numpy()
    path = write_float(teacher, tmp_path / "float.onnx", plain)
    np.testing.assert_allclose(onnxruntime.InferenceSession(path).run(None, batch)[0], wanted, atol=1e-5)
    small = write_dynamic_int8(path, tmp_path / "int8.onnx")
    np.testing.assert_allclose(onnxruntime.InferenceSession(small).run(None, batch)[0], wanted, atol=2e-2)
    kinds = {node.op_type for node in onnx.load(small).graph.node}
    assert "MatMulInteger" in kinds
    assert "MatMul" not in kinds


def test_a_run_that_is_not_exported(reference: Reference, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", str(reference.run_dir), "--data-dir", str(reference.data), "--task", "sst2"])
    error = capsys.readouterr().err
    assert f"run autoquant export {reference.run_dir} first" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("option", ["--threads", "--rounds"])
def test_numbers_below_one(option: str, reference: Reference, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", str(run_dir), option, "0", "--data-dir", str(reference.data), "--task", "sst2"])
    assert "must be at least 1" in capsys.readouterr().err


def test_other_data_is_refused(
    reference: Reference, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(reference.data, tmp_path / "other")
    dev = other / "SST-2" / "dev.tsv"
    dev.write_text("\n".join(dev.read_text("utf-8").splitlines()[:-1]) + "\n", "utf-8")
    with pytest.raises(SystemExit):
        cli.main(["bench", str(run_dir), "--data-dir", str(other), "--task", "sst2"])
    assert f"are not those of {run_dir}" in capsys.readouterr().err
