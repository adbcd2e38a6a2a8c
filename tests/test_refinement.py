"""`autoquant refine`: uniform bits of a model and the allocation of a run, through the command, and what is refused."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoquant import cli
from autoquant.core.errors import SpaceError
from autoquant.core.settings import RECONSTRUCTION
from autoquant.export.manifest import manifest_allocation, read_manifest
from autoquant.pack.checkpoint import read_packed
from autoquant.pack.model import load_packed
from autoquant.pack.modules import PackedLinear
from autoquant.refinement import UniformBits
from runs import MACHINE, Reference, log_of, metrics_of, reference, start

__all__ = ["reference"]

FEW = ["--recovery.mrem-steps", "6", "--recovery.mrem-modules", "2", "--recovery.mrem-learning-rate", "1e-3"]


def arguments(source: Path, data: Path, run_dir: Path, *more: object) -> list[str]:
    options = ["--task", "sst2", "--data-dir", str(data), *MACHINE, *FEW, "--max-length", "32", "--run-dir", str(run_dir)]
    return ["refine", str(source), *options, *map(str, more)]


def refusal(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        cli.main(args)
    assert exit_.value.code == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    return errors


@pytest.mark.parametrize("bits", ["2-2-8", "2-8-8", "4-4-8", "4-8-8", "4-8-4", "8-4-32"])
def test_uniform_bits_end_to_end(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path, bits: str) -> None:
    cli.main(arguments(tiny_classifier_dir, tiny_data, tmp_path / "run", "--bits", bits))
    folder, metrics = tmp_path / "run" / "model", metrics_of(tmp_path / "run")
    assert metrics["bytes"]["file"] == (folder / "model.safetensors").stat().st_size == metrics["bytes"]["budget"]
    assert metrics["strategy"] == f"uniform-{bits}"
    assert metrics["reload_difference"] < 1e-5
    packed, manifest = read_packed(folder / "model.safetensors"), read_manifest(folder / "allocation.json")
    weights, embedding, activations = map(int, bits.split("-"))
    assert set(packed.matrices["bert.encoder.layer.0.output.dense.weight"].bits) == {weights}
    assert packed.matrices["bert.encoder.layer.0.output.dense.weight"].scales.shape == (1,)
    words = packed.matrices["bert.embeddings.word_embeddings.weight"]
    assert set(words.bits) == {embedding}
    assert words.scales.shape == (200,)
    assert (manifest["activation_bits"], manifest["activations"]) == (activations, "static")
    assert set(manifest_allocation(manifest).bits["bert.pooler.dense.weight"]) == {weights}
    layers = [m for m in load_packed(folder).modules() if isinstance(m, PackedLinear)]
    assert sum(layer.input_range is not None for layer in layers) == (13 if activations < 32 else 0)
    modules = json.loads((tmp_path / "run" / "run.json").read_text())["modules"]
    assert [module["layers"] for module in modules] == [[0, 1], [1, 2]]
    assert len(log_of(tmp_path / "run")) == 12
    card = (folder / "README.md").read_text("utf-8")
    assert f"every weight has the bits that its name says ({bits})" in card
    ranges = f"rounded to {activations} bits in learned ranges; to ONNX it exports with `--tail fp32` only"
    assert (ranges in card) == (activations < 32)


def test_two_bits_are_three_values(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    cli.main(arguments(tiny_classifier_dir, tiny_data, tmp_path / "run", "--bits", "2-2-8"))
    model = load_packed(tmp_path / "run" / "model")
    dense = model.get_submodule("bert.encoder.layer.1.intermediate.dense").weight
    values = dense.unique()
    assert torch.equal(values, torch.stack([-values[2], torch.tensor(0.0), values[2]]))
    words = model.get_submodule("bert.embeddings.word_embeddings").weight
    assert all(len(row.unique()) <= 3 for row in words)
    assert len(words.abs().amax(dim=1).unique()) > 100  # a scale per row


def test_a_run_is_refined_with_its_own_allocation(reference: Reference, tmp_path: Path) -> None:
    cli.main(arguments(reference.run_dir, reference.data, tmp_path / "run", "--activation-bits", "4", "--activations", "static"))
    ours, theirs = (read_manifest(folder / "model" / "allocation.json") for folder in (tmp_path / "run", reference.run_dir))
    assert manifest_allocation(ours) == manifest_allocation(theirs)
    assert (ours["quantizer"], ours["activation_bits"], ours["activations"]) == ("midrise", 4, "static")
    assert ours["hashes"]["teacher"] == theirs["hashes"]["teacher"]
    size = metrics_of(tmp_path / "run")["bytes"]["file"]
    assert size == (tmp_path / "run" / "model" / "model.safetensors").stat().st_size > reference.metrics["bytes"]["file"]


def test_a_teacher_is_refined_with_an_allocation_from_elsewhere(
    reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = reference.run_dir / "model" / "allocation.json"
    options = arguments(reference.run_dir / "teacher", reference.data, tmp_path / "run", "--allocation", recorded)
    cli.main(options)
    ours, theirs = read_manifest(tmp_path / "run" / "model" / "allocation.json"), read_manifest(recorded)
    assert manifest_allocation(ours) == manifest_allocation(theirs)
    assert f"--allocation {recorded}" in (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "two allocations" in refusal([*options, "--bits", "2-2-8"], capsys)
    assert "Cannot read" in refusal([*options[:-1], str(tmp_path / "none.json")], capsys)


def test_labels_decide_nothing(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    poisoned = tmp_path / "glue" / "SST-2"
    poisoned.mkdir(parents=True)
    for name in ("train.tsv", "dev.tsv"):
        head, *rows = (tiny_data / "SST-2" / name).read_text("utf-8").splitlines()
        draw = np.random.default_rng(0)
        rows = [f"{row.rpartition(chr(9))[0]}\t{draw.integers(2)}" for row in rows]
        (poisoned / name).write_text("\n".join([head, *rows]) + "\n", "utf-8")
    for run, data in (("true", tiny_data), ("poisoned", tmp_path / "glue")):
        cli.main(arguments(tiny_classifier_dir, data, tmp_path / run, "--bits", "2-2-8"))
    files = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("true", "poisoned")]
    assert files[0] == files[1]


def test_sigkill_and_resume_give_the_same_bytes(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    options = ["--bits", "2-2-8", "--recovery.mrem-steps", "40", "--checkpoint-seconds", "0"]
    cli.main(arguments(tiny_classifier_dir, tiny_data, tmp_path / "whole", *options))
    killed = arguments(tiny_classifier_dir, tiny_data, tmp_path / "killed", *options)
    process = start(killed)
    try:
        while len(log_of(tmp_path / "killed")) < 50:  # within the second module
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert not (tmp_path / "killed" / "metrics.json").exists()
    cli.main([*killed, "--resume"])
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def torchrun(command: list[str], *options: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "autoquant.cli"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([*launcher, *command], stderr=subprocess.PIPE, text=True, env=environment)


def assert_ended_well(*processes: subprocess.Popen[str]) -> None:
    try:
        for process in processes:
            _, errors = process.communicate(timeout=270)
            assert process.returncode == 0, errors[-2000:]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_torchrun_starts_the_processes_too(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    parallel = ["--bits", "2-2-8", "--recovery.reconstruction", "mrem-p", "--device", "auto"]
    command = arguments(tiny_classifier_dir, tiny_data, tmp_path / "run", *parallel)
    assert_ended_well(torchrun(command, "--nproc-per-node", "2", "--standalone"))
    assert metrics_of(tmp_path / "run")["bytes"]["file"] == (tmp_path / "run" / "model" / "model.safetensors").stat().st_size
    assert not (tmp_path / "run" / "rank1" / "model").exists()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    for number in (0, 1):  # the second module's losses came with its weights
        assert [line["step"] for line in lines if line.get("module") == number] == list(range(6))
    # the first process has its result: no other waits for a worker of it
    assert_ended_well(torchrun([*command, "--resume"], "--nproc-per-node", "2", "--standalone"))


def test_torchrun_on_two_machines(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    parallel = ["--bits", "2-2-8", "--recovery.reconstruction", "mrem-p"]
    commands = [arguments(tiny_classifier_dir, tiny_data, tmp_path / name, *parallel) for name in ("one", "two")]
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    assert_ended_well(*(torchrun(command, *meeting) for command in commands))
    finished = [tmp_path / name for name in ("one", "two") if (tmp_path / name / "metrics.json").exists()]
    assert len(finished) == 1  # where the first process ran
    assert (finished[0] / "model" / "model.safetensors").stat().st_size == metrics_of(finished[0])["bytes"]["file"]


def test_the_papers_numbers_are_the_defaults() -> None:
    assert (RECONSTRUCTION.mrem_samples, RECONSTRUCTION.mrem_steps, RECONSTRUCTION.mrem_modules) == (4096, 2000, 4)
    assert (RECONSTRUCTION.reconstruction, RECONSTRUCTION.teacher_forcing, RECONSTRUCTION.steps) == ("mrem-s", "linear", 0)


def test_bits_that_mean_nothing_are_refused() -> None:
    assert str(UniformBits.parse("4-8-8")) == "4-8-8"
    for text in ("4-8", "2-2-16", "5-8-8", "2-1-8", "a-b-c", "2-2-8-8"):
        with pytest.raises(SpaceError, match=f"--bits {text} is not"):
            UniformBits.parse(text)


def test_what_cannot_work_is_refused(
    tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(*more: Any) -> str:
        return refusal(arguments(tiny_classifier_dir, tiny_data, tmp_path / "run", *more), capsys)

    assert "add --bits" in asked()
    assert "drop --activation-bits" in asked("--bits", "2-2-8", "--activation-bits", "8")
    assert "no searched weights" in asked("--bits", "2-2-8", "--recovery.start", "search")
    assert "raise it" in asked("--bits", "2-2-8", "--recovery.parallel-queue", "2")
    trial = tmp_path / "trial"
    trial.mkdir()
    (trial / "run.json").write_text("{}", "utf-8")
    assert "has no teacher/ yet: finish it first" in refusal(arguments(trial, tiny_data, tmp_path / "run"), capsys)
    (trial / "teacher").mkdir()
    assert "holds no finished search: finish one there first" in refusal(arguments(trial, tiny_data, tmp_path / "run"), capsys)
    (trial / "teacher").rmdir()
    (trial / "metrics.json").write_text("{}", "utf-8")
    said = refusal(arguments(trial, tiny_data, tmp_path / "run"), capsys)
    assert f"that of its shared/ folder instead, with --allocation {trial / 'model' / 'allocation.json'}" in said
    assert not (tmp_path / "run").exists()
