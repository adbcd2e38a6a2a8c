"""Many cells side by side on one large machine: every line of a file is an experiment's script and its arguments.

    python experiments/parallel.py cells.txt --workers 14 --seconds 500
    echo 'ablation.py --data-dir glue --rows dnas --ratios 25 --runs runs/{job}' > cells.txt

`experiments/missing.py` writes such a file of everything that is missing. Lines are started in order, each in a process forked
from one that has imported everything already; `{job}` is its number, for run directories of its own. Its output goes to
LOGS/<number>.log. After --seconds, whatever still runs is stopped: scripts here keep every finished cell, so the same file goes
on from there. Times measured so are those of a crowded machine: compare metrics, not speed.
"""

from __future__ import annotations

import importlib
import os
import runpy
import shlex
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Options:
    cells: Annotated[Path, tyro.conf.Positional]
    """The file of lines."""
    workers: int = 2
    """Processes at a time; each should have one thread."""
    seconds: float = 1e9
    """When to stop what still runs."""
    logs: Path = Path("logs/parallel")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    jobs = [line for line in options.cells.read_text("utf-8").splitlines() if line.strip() and not line.startswith("#")]
    options.logs.mkdir(parents=True, exist_ok=True)
    import_everything()
    began, running, failed, done = time.monotonic(), dict[int, int](), list[int](), 0
    queue = list(enumerate(jobs))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: children have sessions of their own
    try:
        while queue or running:
            while queue and len(running) < options.workers and time.monotonic() - began < options.seconds:
                number, line = queue.pop(0)
                running[start(number, line, options.logs)] = number
            if time.monotonic() - began >= options.seconds:
                break
            ended, status = os.waitpid(-1, os.WNOHANG)
            if not ended:
                time.sleep(0.05)
                continue
            number, done = running.pop(ended), done + 1
            failed += [number] if status else []
            print(f"{time.monotonic() - began:6.0f} s  {'FAILED' if status else 'done  '} {number} {jobs[number]}", flush=True)
    finally:
        stop(running)
    left = [number for number, _ in queue] + sorted(running.values())
    print(f"{done - len(failed)} done, {len(failed)} failed, {len(left)} left.")
    if failed or left:
        raise SystemExit(1)


def import_everything() -> None:
    """What takes seconds to import; nothing of it may start CUDA, which does not survive a fork."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    sys.path.insert(0, str(HERE))
    for name in ("ablation", "compare", "mrem", "autoquant.export.onnx.exporter"):
        importlib.import_module(name)


def start(number: int, line: str, logs: Path) -> int:
    """Fork; the child runs the line and leaves. Returns its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    os.setsid()  # so that it is stopped with the processes that it starts
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = os.open(logs / f"{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        script, *arguments = shlex.split(line.format(job=number))
        sys.argv = [str(HERE / script), *arguments]
        print(line, flush=True)
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        print(end)
    except BaseException:  # the process ends here, whatever it was
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def stop(running: dict[int, int]) -> None:
    for child in running:
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:  # it has no session of its own yet
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
