"""experiments/parallel.py: lines side by side, each with a log, an exit status and an end in time."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "parallel.py"


def run(folder: Path, lines: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "cells.txt").write_text("\n".join(lines) + "\n")
    command = [sys.executable, str(SCRIPT), str(folder / "cells.txt"), "--logs", str(folder / "logs"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def script(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_every_line_runs_with_its_number_and_a_failure_stops_no_other(tmp_path: Path) -> None:
    works = script(tmp_path, "works.py", "import sys; print('got', *sys.argv[1:])")
    fails = script(tmp_path, "fails.py", "raise ValueError('broken')")
    done = run(tmp_path, ["# a comment", f"{fails} a", f"{works} --runs runs/{{job}}", f"{works} last"])
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "2 done, 1 failed, 0 left."
    assert "broken" in (tmp_path / "logs" / "0.log").read_text()
    assert (tmp_path / "logs" / "1.log").read_text().splitlines()[-1] == "got --runs runs/1"
    assert (tmp_path / "logs" / "2.log").read_text().splitlines()[-1] == "got last"


def test_what_still_runs_at_the_end_is_stopped_with_its_children(tmp_path: Path) -> None:
    text = "import os, pathlib, subprocess, sys, time; child = subprocess.Popen(['sleep', '600'])\n"
    text += "pathlib.Path(sys.argv[1]).write_text(str(child.pid)); time.sleep(600)"
    sleeps = script(tmp_path, "sleeps.py", text)
    done = run(tmp_path, [f"{sleeps} {tmp_path / 'child'}", f"{sleeps} {tmp_path / 'never'}"], "--workers", "1", "--seconds", "3")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "0 done, 0 failed, 2 left."
    child = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not child.exists() or child.read_text().split()[2] == "Z"
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_stops_the_children(tmp_path: Path, signal_: signal.Signals) -> None:
    text = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
    sleeps = script(tmp_path, "sleeps.py", text)
    (tmp_path / "cells.txt").write_text(f"{sleeps} {tmp_path / 'child'}\n")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "cells.txt"), "--logs", str(tmp_path / "logs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not ((tmp_path / "child").exists() and (tmp_path / "child").read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal_)
        process.communicate(timeout=60)
    assert process.returncode != 0
    assert not Path(f"/proc/{(tmp_path / 'child').read_text()}").exists()


def test_lines_that_all_work_end_with_success(tmp_path: Path) -> None:
    works = script(tmp_path, "works.py", "print('fine')")
    done = run(tmp_path, [works, works], "--workers", "2")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "2 done, 0 failed, 0 left.")
