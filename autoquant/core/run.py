"""What does a run leave on disk? One directory, held by one process, resumable after a kill.

    run.json                settings, versions, hashes of the inputs, date
    metrics.jsonl           one JSON line per logged step
    metrics.json            the result; written last, so its presence says that the run is finished
    checkpoint/<stage>.pt   state of a stage that was interrupted
    checkpoint/stages.json  seconds and peak memory of every stage, results of the finished ones
    teacher/, model/        the fine-tuned teacher; what is shipped
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import pickle
import time
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autoquant.core.cost import MIB
from autoquant.core.errors import CheckpointError, LockedError, RunError
from autoquant.core.files import TEMPORARY_SUFFIX, atomic_file, atomic_write_text, disk_errors, folder_bytes, free_bytes
from autoquant.core.versions import versions

CORRUPT = (RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError, ValueError, TypeError, AttributeError)


class RunDirectory:
    """The files of one run; `RunDirectory(path)` reads, `RunDirectory.open(...)` also locks and is needed to write."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._clock: tuple[str, float] | None = None  # the stage under way, and until when its time is written down

    @classmethod
    @contextmanager
    def open(
        cls,
        path: str | Path,
        settings: Mapping[str, Any],
        resume: bool = False,
        expected_bytes: int = 0,
        defaults: Mapping[str, Any] | None = None,
    ) -> Iterator[RunDirectory]:
        """Hold the directory for this process, as a new run or, with `resume`, the run that is there (if any).

        settings: JSON values (paths, tuples and NumPy scalars are converted); they identify the run.
        expected_bytes: what the whole run will write; compared with the free space beforehand.
        defaults: what settings meant in runs that are older than they are; nested as in `settings`.
        Raises RunError when the folder is held by another process, holds a run that may not be continued, is not
        writable, or has too little room.
        """
        run = cls(path)
        with disk_errors(run.path):
            _check_space(run.path, expected_bytes)
            run.path.mkdir(parents=True, exist_ok=True)
        with _locked(run.path):
            run._remove_temporaries()
            if run._run_file.exists():
                run._check_may_continue(_plain(settings), resume, _plain(defaults or {}))
                run._repair_log()
            else:
                run._begin(_plain(settings))
            yield run

    # Where things are

    @property
    def model_dir(self) -> Path:
        """What is shipped."""
        return self.path / "model"

    @property
    def teacher_dir(self) -> Path:
        return self.path / "teacher"

    @property
    def _run_file(self) -> Path:
        return self.path / "run.json"

    @property
    def _result_file(self) -> Path:
        return self.path / "metrics.json"

    @property
    def _log_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _stages_file(self) -> Path:
        return self.path / "checkpoint" / "stages.json"

    def _state_file(self, stage: str) -> Path:
        return self.path / "checkpoint" / f"{stage}.pt"

    # run.json

    @property
    def is_finished(self) -> bool:
        """Whether the result, metrics.json, is there."""
        return self._result_file.exists()

    def info(self) -> dict[str, Any]:
        """The content of run.json: settings, versions, hashes, created."""
        return self._read_json(self._run_file, {"settings", "versions", "hashes"}, "give another --run-dir")

    def result(self) -> dict[str, Any]:
        """The content of metrics.json, of a finished run. Raises RunError if it is none, CheckpointError for damage."""
        return self._read_json(self._result_file, {"task", "metric", "bytes"}, "delete it and run again with --resume")

    def other_versions(self) -> list[str]:
        """What has another version now than when the run began, as `differences` says it."""
        return differences(self.info()["versions"], versions())

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the settings of this run; every checkpoint carries it."""
        return hashlib.sha256(_json(self.info()["settings"]).encode()).hexdigest()

    def add_hashes(self, **hashes: str) -> None:
        """Record the hash of each input. Raises RunError when the run began with another one."""
        info = self.info()
        for name, value in hashes.items():
            if info["hashes"].get(name, value) != value:
                raise RunError(
                    f"{name} changed since {self.path} began (sha256 {info['hashes'][name][:12]}, now {value[:12]}): "
                    "bring the old one back or give another --run-dir."
                )
        if hashes.items() - info["hashes"].items():
            self.write_json("run.json", {**info, "hashes": {**info["hashes"], **hashes}})

    def record(self, **facts: Any) -> None:
        """Add to run.json what only became known on the way."""
        self.write_json("run.json", {**self.info(), **facts})

    def write_json(self, name: str, data: Any) -> None:
        """Write `name` (a path relative to the run) atomically as JSON with sorted keys."""
        atomic_write_text(self.path / name, _json(data, indent=2) + "\n")

    def _begin(self, settings: dict[str, Any]) -> None:
        remains = [f.name for f in (self._stages_file.parent, self._log_file, self.teacher_dir, self.model_dir) if f.exists()]
        if remains or self.is_finished:
            raise RunError(f"{self.path} holds {', '.join(remains) or 'metrics.json'} but no run.json: give another --run-dir.")
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.write_json("run.json", {"settings": settings, "versions": versions(), "hashes": {}, "created": created})

    def _check_may_continue(self, settings: dict[str, Any], resume: bool, defaults: dict[str, Any]) -> None:
        if not resume:
            state = "finished" if self.is_finished else "unfinished"
            raise RunError(f"{self.path} already holds a run ({state}): use --resume to go on or another --run-dir.")
        changed = differences(self.info()["settings"], settings, defaults)
        if changed:
            raise RunError(
                f"{self.path} was started with other settings ({'; '.join(changed)}): resume with the same ones or give "
                "another --run-dir."
            )

    def _remove_temporaries(self) -> None:
        """What a killed process was writing; only the holder of the lock may call it."""
        with disk_errors(self.path):
            controls = self.path.glob("controls/*")
            for folder in (self.path, self._stages_file.parent, self.teacher_dir, self.model_dir, *controls):
                for file in folder.glob(f".*{TEMPORARY_SUFFIX}"):
                    file.unlink()

    # metrics.jsonl

    def log(self, stage: str, **values: Any) -> None:
        """Append one line. No time of day goes in, so that a resumed run logs what an uninterrupted one would."""
        with disk_errors(self._log_file), self._log_file.open("a", encoding="utf-8") as file:
            file.write(_json({"stage": stage, **values}) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """Every complete line; the last one is ignored when a kill cut it. Raises CheckpointError for any other damage."""
        if not self._log_file.exists():
            return []
        *lines, _torn = self._log_file.read_bytes().split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise CheckpointError(f"{self._log_file} is damaged: delete the lines that are not JSON or the run.") from error

    def truncate_log(self, stage: str, step: int) -> None:
        """Forget what `stage` logged from `step` on, before it does those steps again.

        A line without a step counts as one at the end of its stage.
        """
        lines = self.read_log()
        kept = [line for line in lines if line["stage"] != stage or line.get("step", math.inf) < step]
        if len(kept) < len(lines):
            atomic_write_text(self._log_file, "".join(_json(line) + "\n" for line in kept))

    def _repair_log(self) -> None:
        """Cut off a torn last line, or the next one would be appended to it."""
        if not self._log_file.exists():
            return
        with disk_errors(self._log_file), self._log_file.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)

    # checkpoint/<stage>.pt

    def save_state(self, stage: str, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint of a stage. `state`: tensors and plain Python values, nested in dicts, lists and tuples.

        Raises TypeError for anything else, since it could be written but not read back, and RunError when the disk
        refuses; the previous checkpoint then stays.
        """
        import torch  # takes a second, which commands that only read a run need not wait for

        check_loadable(state, stage)
        with atomic_file(self._state_file(stage)) as file:
            try:
                torch.save({"fingerprint": self.fingerprint, "state": dict(state)}, file)
            except RuntimeError as error:  # closing its archive, torch hides why the disk refused
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
        self._write_time()

    def load_state(self, stage: str) -> dict[str, Any] | None:
        """The checkpoint of a stage, on the CPU, or None. Raises CheckpointError when it is damaged or of another run."""
        import torch

        path = self._state_file(stage)
        if not path.exists():
            return None
        remedy = f"delete it to do the stage '{stage}' again"
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
                damaged = archive.testzip()
            saved = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
        except CORRUPT as error:
            raise CheckpointError(f"{path} is damaged or no checkpoint: {remedy}.") from error
        if not isinstance(saved, dict) or set(saved) != {"fingerprint", "state"}:
            raise CheckpointError(f"{path} is damaged or no checkpoint: {remedy}.")
        if saved["fingerprint"] != self.fingerprint:
            raise CheckpointError(f"{path} belongs to a run with other settings: {remedy}.")
        return saved["state"]

    def discard_state(self, stage: str) -> None:
        """Remove the checkpoint of a stage, if any."""
        with disk_errors(self._state_file(stage)):
            self._state_file(stage).unlink(missing_ok=True)

    def discard_states(self, stage: str) -> None:
        """Remove the checkpoint of a stage and those of its parts, named after it with a hyphen between."""
        for file in self._state_file(stage).parent.glob(f"{stage}-*.pt"):
            self.discard_state(file.stem)
        self.discard_state(stage)

    # checkpoint/stages.json

    def finish(self, stage: str, result: Mapping[str, Any]) -> None:
        """Record a stage as done, with a JSON result; on resume it is not done again."""
        self._write_stage(stage, result=dict(result))

    def finished(self, stage: str) -> dict[str, Any] | None:
        """The result of a finished stage, or None."""
        return self._stages().get(stage, {}).get("result")

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall-clock seconds of a block to its stage; a block within it has its seconds to itself.

        They are written down with every checkpoint, so that a kill costs as much time as it costs work.
        """
        self._write_time()
        outer, self._clock = self._clock, (stage, time.monotonic())
        try:
            yield
        finally:
            self._write_time()
            self._clock = None if outer is None else (outer[0], time.monotonic())

    def _write_time(self) -> None:
        if self._clock is not None:
            (stage, since), now = self._clock, time.monotonic()
            self._write_stage(stage, seconds=self.seconds().get(stage, 0.0) + now - since)
            self._clock = stage, now

    def seconds(self) -> dict[str, float]:
        """Seconds of every stage so far, up to its last checkpoint, over all interruptions."""
        return {stage: entry["seconds"] for stage, entry in self._stages().items() if "seconds" in entry}

    def add_peak(self, stage: str, mib: float) -> None:
        """Record the memory of a stage; the largest counts."""
        self._write_stage(stage, peak_mib=max(self.peaks_mib().get(stage, 0.0), mib))

    def peaks_mib(self) -> dict[str, float]:
        """The most memory that every stage took so far, MiB."""
        return {stage: entry["peak_mib"] for stage, entry in self._stages().items() if "peak_mib" in entry}

    def _stages(self) -> dict[str, dict[str, Any]]:
        if not self._stages_file.exists():
            return {}
        remedy = "delete the folder it is in to do every stage again"
        data = self._read_json(self._stages_file, {"fingerprint", "stages"}, remedy)
        if data["fingerprint"] != self.fingerprint:
            raise CheckpointError(f"{self._stages_file} belongs to a run with other settings: {remedy}.")
        return data["stages"]

    def _write_stage(self, stage: str, **entry: Any) -> None:
        stages = self._stages()
        stages[stage] = {**stages.get(stage, {}), **entry}
        atomic_write_text(self._stages_file, _json({"fingerprint": self.fingerprint, "stages": stages}, indent=2) + "\n")

    @staticmethod
    def _read_json(path: Path, keys: set[str], remedy: str) -> dict[str, Any]:
        try:
            data = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise RunError(f"{path.parent} holds no run: {path.name} is missing.") from error
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged: {remedy}.") from error
        if not isinstance(data, dict) or not keys <= set(data):
            raise CheckpointError(f"{path} is damaged: {remedy}.")
        return data


def check_loadable(value: Any, where: str) -> None:
    """Raise TypeError unless `torch.load(weights_only=True)` gives `value` back; `where` names it in the message."""
    import torch

    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            check_loadable(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            check_loadable(item, f"{where}[{index}]")
    elif type(value) not in (bool, int, float, str, bytes, type(None)) and not isinstance(value, torch.Tensor):
        raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint takes tensors and plain Python values.")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` for this process. The kernel drops the lock when the process dies, however it dies."""
    lock = FileLock(path / ".lock")
    holder = path / ".lock.pid"  # beside the lock, which some systems let no other process read
    with disk_errors(path):
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            pid = holder.read_text().strip() if holder.exists() else ""
            who = f"process {pid}" if pid else "another process"
            raise LockedError(f"{path} is in use by {who}: wait for it, stop it, or give another --run-dir.") from error
    try:
        with disk_errors(path):
            holder.write_text(f"{os.getpid()}\n")
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()


def _check_space(path: Path, expected_bytes: int) -> None:
    present, free = folder_bytes(path), free_bytes(path)
    if expected_bytes - present > free:
        raise RunError(
            f"The run needs about {(expected_bytes - present) / MIB:.0f} MiB in {path}, {free / MIB:.0f} MiB are free: make "
            "room or give another --run-dir."
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> list[str]:
    """`key: was ..., now ...` for each differing setting, nested keys joined by dots; `defaults` of keys that `old` lacks."""
    after, known = dict(_flat(new)), dict(_flat(defaults or {}))
    before = {key: value for key, value in known.items() if key in after} | dict(_flat(old))
    keys = sorted(before.keys() | after.keys())
    return [
        f"{key}: was {before.get(key, 'not set')}, now {after.get(key, 'not set')}"
        for key in keys
        if key not in before or key not in after or before[key] != after[key]
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value)


def _json(data: Any, indent: int | None = None) -> str:
    return json.dumps(data, sort_keys=True, indent=indent, default=_to_json)


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` as it will be read back, so that it compares equal with what is on disk."""
    return json.loads(_json(data))


def _to_json(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):  # a NumPy or torch scalar
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form: give numbers, strings, lists or dicts.")
