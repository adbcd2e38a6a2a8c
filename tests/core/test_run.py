"""A run directory, part by part: opening and refusing it, room and kills, its log, states, and what stages leave."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from autoquant.core.errors import CheckpointError, RunError
from autoquant.core.run import RunDirectory

SETTINGS = {"budget_mib": 6.0, "search": {"steps": 300, "seed": 0}, "text_columns": ("a", "b")}
OTHER = {**SETTINGS, "search": {"steps": 400, "seed": 0}}


@pytest.fixture
def run(tmp_path):
    with RunDirectory.open(tmp_path / "run", SETTINGS) as run:
        yield run


def child(body: str, path: Path, **kwargs) -> subprocess.Popen:
    """A Python process that runs `body`, in which `run` holds `path`."""
    lines = "\n    ".join(body.splitlines())
    code = f"""
import os, signal, sys
from autoquant.core.run import RunDirectory
with RunDirectory.open({str(path)!r}, {SETTINGS!r}, resume=True) as run:
    {lines}
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **kwargs)


# Opening


def test_a_new_run_records_settings_and_versions(run):
    info = json.loads((run.path / "run.json").read_text())
    assert info["settings"] == {**SETTINGS, "text_columns": ["a", "b"]}
    assert set(info["versions"]) == {"autoquant", "code", "python", "torch", "transformers", "numpy", "safetensors", "platform"}
    assert info["versions"]["torch"] == torch.__version__
    assert info["hashes"] == {}
    assert "created" in info


def test_a_run_says_what_has_another_version_now(run):
    assert run.other_versions() == []
    info = run.info()
    run.write_json("run.json", {**info, "versions": {**info["versions"], "torch": "1.0"}})
    (changed,) = run.other_versions()
    assert changed.startswith('torch: was "1.0", now ')


def test_settings_may_hold_paths_and_numpy_scalars(tmp_path):
    settings = {"data": tmp_path / "x", "rate": np.float32(0.5), "steps": np.int64(3)}
    for resume in (False, True):
        with RunDirectory.open(tmp_path / "run", settings, resume=resume) as run:
            assert run.info()["settings"] == {"data": str(tmp_path / "x"), "rate": 0.5, "steps": 3}


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_is_not_overwritten(tmp_path, finished):
    with RunDirectory.open(tmp_path, SETTINGS) as run:
        if finished:
            run.write_json("metrics.json", {})
    word = "finished" if finished else "unfinished"
    with pytest.raises(RunError, match=rf"already holds a run \({word}\): use --resume .* or another --run-dir"):
        RunDirectory.open(tmp_path, SETTINGS).__enter__()


def test_resume_wants_the_same_settings_and_names_each_difference(tmp_path):
    with RunDirectory.open(tmp_path, {**SETTINGS, "task": "sst2"}):
        pass
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RunError) as error:
        RunDirectory.open(tmp_path, {**OTHER, "device": "cpu"}, resume=True).__enter__()
    text = str(error.value)
    assert "search.steps: was 300, now 400" in text
    assert 'task: was "sst2", now not set' in text
    assert 'device: was not set, now "cpu"' in text
    assert "seed" not in text
    assert "\n" not in text
    assert (tmp_path / "run.json").read_bytes() == before


@pytest.mark.parametrize("exists", [False, True])
def test_resume_without_a_run_starts_one(tmp_path, exists):
    path = tmp_path / "deep" / "run"
    if exists:
        path.mkdir(parents=True)
    with RunDirectory.open(path, SETTINGS, resume=True) as run:
        assert run.info()["settings"]["budget_mib"] == 6.0


def test_remains_without_run_json_are_not_taken_over(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(RunError, match=r"holds checkpoint but no run\.json"):
        RunDirectory.open(tmp_path, SETTINGS, resume=True).__enter__()
    assert not (tmp_path / "run.json").exists()


def test_files_of_others_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with RunDirectory.open(tmp_path, SETTINGS):
        pass
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_damaged_run_json_is_reported(tmp_path):
    (tmp_path / "run.json").write_text('{"settings": ')
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        RunDirectory.open(tmp_path, SETTINGS, resume=True).__enter__()


def test_reading_needs_a_run(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        RunDirectory(tmp_path).info()


def test_a_changed_input_is_refused(run):
    run.add_hashes(train="aa" * 32, model="bb" * 32)
    run.add_hashes(train="aa" * 32)
    assert run.info()["hashes"] == {"train": "aa" * 32, "model": "bb" * 32}
    with pytest.raises(RunError, match=r"train changed .* \(sha256 aaaaaaaaaaaa, now cccccccccccc\)"):
        run.add_hashes(train="cc" * 32)


# Disk


def test_too_little_room_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(RunError, match=r"needs about 1073741824 MiB .* MiB are free"):
        RunDirectory.open(tmp_path / "run", SETTINGS, expected_bytes=2**50).__enter__()
    assert not (tmp_path / "run").exists()


def test_a_file_that_goes_while_bytes_are_counted_is_no_error(tmp_path, monkeypatch):
    """As those do that another process, which holds the folder, writes aside and puts into place."""
    with RunDirectory.open(tmp_path / "run", SETTINGS) as run:
        (run.path / "big").write_bytes(bytes(5000))
    walked = [(str(run.path), [], ["big", ".stages.json.1.autoquant.tmp"])]
    monkeypatch.setattr("autoquant.core.files.os.walk", lambda _: walked)
    monkeypatch.setattr("autoquant.core.run.free_bytes", lambda path: 1000)
    with RunDirectory.open(tmp_path / "run", SETTINGS, resume=True, expected_bytes=6000):
        pass


def test_what_a_resumed_run_has_written_needs_no_room_again(tmp_path, monkeypatch):
    with RunDirectory.open(tmp_path / "run", SETTINGS) as run:
        (run.path / "big").write_bytes(bytes(5000))
    monkeypatch.setattr("autoquant.core.run.free_bytes", lambda path: 1000)
    with RunDirectory.open(tmp_path / "run", SETTINGS, resume=True, expected_bytes=5500):
        pass
    with pytest.raises(RunError, match="needs about"):
        RunDirectory.open(tmp_path / "run", SETTINGS, resume=True, expected_bytes=50000).__enter__()


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="a file is where a folder is needed"):
            RunDirectory.open(path, SETTINGS).__enter__()


def test_an_unwritable_folder_is_one_line(tmp_path, monkeypatch):
    def denied(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(RunError, match="not writable"):
        RunDirectory.open(tmp_path / "run", SETTINGS).__enter__()


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(tmp_path):
    """The kernel's limit on file size stands in for a full disk: writes really fail half-way."""
    body = """
import resource, torch
from autoquant.core.errors import RunError
run.save_state("search", {"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    run.save_state("search", {"step": 2, "weight": torch.zeros(1_000_000)})
except RunError as error:
    print(error)"""
    process = child(body, tmp_path)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.startswith("No space left to write")
    assert out.count("\n") == 1
    with RunDirectory.open(tmp_path, SETTINGS, resume=True) as run:
        assert run.load_state("search") == {"step": 1}
    assert [f.name for f in (tmp_path / "checkpoint").iterdir()] == ["search.pt"]


def test_json_has_sorted_keys(run):
    run.write_json("metrics.json", {"b": 1, "a": np.float64(0.5)})
    assert (run.path / "metrics.json").read_text() == '{\n  "a": 0.5,\n  "b": 1\n}\n'


# Lock


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path):
    process = child('print("held", flush=True)\nsys.stdin.read()', tmp_path, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=rf"{tmp_path} is in use by process {process.pid}:"):
        RunDirectory.open(tmp_path, SETTINGS, resume=True).__enter__()
    process.communicate(timeout=60)
    with RunDirectory.open(tmp_path, SETTINGS, resume=True):
        pass


def test_a_killed_process_leaves_a_resumable_run(tmp_path):
    body = """
run.save_state("search", {"step": 7})
run.log("search", step=7)
half = (run.path / "metrics.jsonl").open("a")
half.write('{"stage": "sea')
half.flush()
(run.path / "controls" / "uniform").mkdir(parents=True)
for folder, name in (("checkpoint", "search.pt"), ("controls/uniform", "model.safetensors")):
    (run.path / folder / f".{name}.{os.getpid()}.autoquant.tmp").write_bytes(b"half")
os.kill(os.getpid(), signal.SIGKILL)"""
    process = child(body, tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / ".lock.pid").read_text() == f"{process.pid}\n"
    with RunDirectory.open(tmp_path, SETTINGS, resume=True) as run:
        assert run.load_state("search") == {"step": 7}
        run.log("search", step=8)
        assert run.read_log() == [{"stage": "search", "step": 7}, {"stage": "search", "step": 8}]
        assert [f.name for f in (tmp_path / "checkpoint").iterdir()] == ["search.pt"]
        assert not any((tmp_path / "controls" / "uniform").iterdir())


def test_kills_at_any_moment_lose_no_checkpoint(tmp_path):
    """States are replaced in a loop; whenever the kill comes, the next process reads one and counts on."""
    body = """
import torch
step = (run.load_state("search") or {"step": 0})["step"]
print("ready", flush=True)
while True:
    step += 1
    run.log("search", step=step)
    run.save_state("search", {"step": step, "weight": torch.full((20_000,), step)})"""
    reached = 0
    for delay in (0.0, 0.013, 0.031):
        process = child(body, tmp_path)
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=60)
        with RunDirectory.open(tmp_path, SETTINGS, resume=True) as run:
            state = run.load_state("search") or {"step": 0, "weight": torch.zeros(1)}
            steps = [line["step"] for line in run.read_log()]
            assert bool((state["weight"] == state["step"]).all())
            assert state["step"] >= reached
            assert steps[-1:] in ([], [state["step"]], [state["step"] + 1])
            run.truncate_log("search", state["step"] + 1)
            assert [line["step"] for line in run.read_log()] == list(range(1, state["step"] + 1))
            reached = state["step"]


def test_an_exception_frees_the_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), RunDirectory.open(tmp_path, SETTINGS):
        raise KeyboardInterrupt
    with RunDirectory.open(tmp_path, SETTINGS, resume=True):
        pass


def test_an_error_of_the_caller_is_not_taken_for_one_of_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError), RunDirectory.open(tmp_path, SETTINGS):
        Path(tmp_path / "missing").read_text()


# Log


def test_the_log_after_a_resume_is_the_log_without_the_kill(tmp_path):
    def steps(run, begin, end):
        for step in range(begin, end):
            run.log("search", step=step, loss=1 / (step + 1))

    with RunDirectory.open(tmp_path / "whole", SETTINGS) as run:
        run.log("teacher", step=9, loss=0.5)
        steps(run, 0, 6)
        run.log("search", summary="done")
    with RunDirectory.open(tmp_path / "cut", SETTINGS) as run:
        run.log("teacher", step=9, loss=0.5)
        steps(run, 0, 6)
        run.log("search", summary="done")
    with RunDirectory.open(tmp_path / "cut", SETTINGS, resume=True) as run:
        run.truncate_log("search", 4)
        assert [line["step"] for line in run.read_log()] == [9, 0, 1, 2, 3]
        steps(run, 4, 6)
        run.log("search", summary="done")
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_scalars_of_torch_and_numpy_can_be_logged(run):
    run.log("search", loss=torch.tensor(0.5), bits=np.int64(3))
    assert run.read_log() == [{"stage": "search", "loss": 0.5, "bits": 3}]


def test_a_torn_last_line_is_ignored_and_other_damage_is_not(run):
    assert run.read_log() == []
    run.log("search", step=1)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "search", "step": 2}')
    assert run.read_log() == [{"stage": "search", "step": 1}]
    (run.path / "metrics.jsonl").write_text('{"stage\n{"stage": "search"}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged"):
        run.read_log()


# States


def test_a_state_comes_back(run):
    assert run.load_state("search") is None
    state = {"weight": torch.arange(6.0).reshape(2, 3), "step": 3, "nested": [OrderedDict(a=(1, None, True, "x", b"y", 0.5))]}
    run.save_state("search", state)
    loaded = run.load_state("search")
    assert torch.equal(loaded.pop("weight"), state.pop("weight"))
    assert loaded == state
    run.discard_state("search")
    run.discard_state("search")
    assert run.load_state("search") is None


def test_optimizer_and_random_states_come_back(run):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    run.save_state("search", {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()})
    expected = torch.rand(3)
    loaded = run.load_state("search")
    optimizer.load_state_dict(loaded["optimizer"])
    torch.set_rng_state(loaded["rng"])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("value", "where"),
    [(np.float64(0.5), "float64"), (np.zeros(2), "ndarray"), ({1}, "set"), (Path("x"), "PosixPath")],
)
def test_what_could_not_be_read_back_is_not_written(run, value, where):
    with pytest.raises(TypeError, match=rf"search\['a'\]\[0\] is a {where}"):
        run.save_state("search", {"a": [value]})
    assert run.load_state("search") is None


def damage_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def pickle_code(path: Path) -> None:
    torch.save({"fingerprint": "", "state": {"call": os.system}}, path)


DAMAGE = {
    "one bit": damage_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a checkpoint"),
    "other zip": lambda path: zipfile.ZipFile(path, "w").writestr("a", "b"),
    "other state": lambda path: torch.save({"weight": torch.ones(2)}, path),
    "not a dict": lambda path: torch.save(torch.ones(2), path),
    "code": pickle_code,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_is_refused_with_the_remedy(run, damage):
    run.save_state("search", {"weight": torch.zeros(10_000)})
    path = run.path / "checkpoint" / "search.pt"
    damage(path)
    with pytest.raises(CheckpointError, match=rf"{path} is damaged or no checkpoint: delete it to do the stage 'search' again"):
        run.load_state("search")


def test_a_state_of_another_run_is_refused(tmp_path):
    with RunDirectory.open(tmp_path / "a", SETTINGS) as first, RunDirectory.open(tmp_path / "b", OTHER) as second:
        first.save_state("search", {"step": 1})
        first.finish("teacher", {})
        (first.path / "checkpoint").rename(second.path / "checkpoint")
        with pytest.raises(CheckpointError, match=r"search\.pt belongs to a run with other settings"):
            second.load_state("search")
        with pytest.raises(CheckpointError, match=r"stages\.json belongs to a run with other settings"):
            second.finished("teacher")


# Stages


def test_results_and_seconds_outlive_the_process(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with RunDirectory.open(tmp_path, SETTINGS) as run:
        assert run.seconds() == {}
        run.finish("teacher", {"accuracy": 0.8})
        with run.timed("teacher"):
            now[0] += 1.5
        with run.timed("search"):
            now[0] += 2
        run.finish("export", {})
    with RunDirectory.open(tmp_path, SETTINGS, resume=True) as run:
        with run.timed("search"):
            now[0] += 3
        assert run.finished("teacher") == {"accuracy": 0.8}
        assert run.finished("search") is None
        assert run.finished("export") == {}
        assert run.seconds() == {"teacher": 1.5, "search": 5.0}


def test_seconds_are_written_with_every_checkpoint_and_belong_to_the_innermost_stage(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with RunDirectory.open(tmp_path, SETTINGS) as run, run.timed("search"):
        now[0] += 4
        run.save_state("search", {"step": 1})
        now[0] += 1
        assert RunDirectory(tmp_path).seconds() == {"search": 4}  # what a kill leaves
        with run.timed("teacher"):
            now[0] += 10
            run.save_state("teacher", {"step": 1})
            now[0] += 10
        now[0] += 1
    assert RunDirectory(tmp_path).seconds() == {"search": 6, "teacher": 20}


def test_the_largest_peak_of_a_stage_counts(tmp_path):
    with RunDirectory.open(tmp_path, SETTINGS) as run:
        run.add_peak("search", 300.0)
    with RunDirectory.open(tmp_path, SETTINGS, resume=True) as run:
        run.add_peak("search", 200.0)
        run.add_peak("teacher", 100.0)
        assert run.peaks_mib() == {"search": 300.0, "teacher": 100.0}


@pytest.mark.parametrize("text", ["", "[]", '{"stages": {}}'])
def test_damaged_stages_are_refused(run, text):
    run.finish("teacher", {})
    (run.path / "checkpoint" / "stages.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"stages\.json is damaged: delete the folder"):
        run.finished("teacher")


def test_a_setting_newer_than_the_run_had_its_default_then(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", {"recipe": {"steps": 3}}):
        pass
    defaults = {"recipe": {"steps": 9, "noise": 0.1, "gone": 1}}
    with RunDirectory.open(tmp_path / "run", {"recipe": {"steps": 3, "noise": 0.1}}, resume=True, defaults=defaults):
        pass
    with (
        pytest.raises(RunError, match=r"other settings \(recipe.noise: was 0.1, now 0.5\)"),
        RunDirectory.open(tmp_path / "run", {"recipe": {"steps": 3, "noise": 0.5}}, resume=True, defaults=defaults),
    ):
        pass
