import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from autoquant.core.progress import SilentProgress, StagePlan, TerminalProgress, duration, rounded


class Clock:
    """Time that passes when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def plain(clock):
    """Progress into a file, and a function that gives the lines so far."""
    file = io.StringIO()
    return TerminalProgress(Console(file=file, width=60), clock), lambda: file.getvalue().splitlines()


def work(bar, clock, steps, seconds_per_step):
    for step in range(steps):
        clock.now += seconds_per_step
        bar.advance(note=f"loss {step}")


def test_a_log_gets_a_line_every_ten_seconds(plain, clock):
    progress, lines = plain
    with progress.stage("Search", total=30) as bar:
        work(bar, clock, 30, 1.0)
    assert lines() == [
        "Search: 30 steps",
        "Search: 10/30 (33 %), loss 9, 20 s left",
        "Search: 20/30 (66 %), loss 19, 10 s left",
        "Search: 30/30 (100 %), loss 29, 0 s left",
        "Search: 30 steps in 30 s, loss 29",
    ]


def test_time_left_of_a_resumed_stage_counts_only_steps_done_here(plain, clock):
    progress, lines = plain
    with progress.stage("Search", total=100, start=90) as bar:
        work(bar, clock, 5, 4.0)
        bar.advance(steps=5)
    assert lines()[:2] == ["Search: 100 steps, resumed at step 90", "Search: 93/100 (93 %), loss 2, 28 s left"]
    assert lines()[-1] == "Search: 100 steps in 20 s, loss 4"


def test_the_whole_run_is_estimated_from_what_finished_stages_took(plain, clock):
    progress, lines = plain
    progress.plan([("Teacher", 100.0), ("Search", 300.0), ("Pack", 60.0)])
    with progress.stage("Teacher", total=10) as bar:
        work(bar, clock, 10, 20.0)  # 200 s instead of 100: the rest is expected to take twice its estimate
    with progress.stage("Search", total=10) as bar:
        work(bar, clock, 1, 30.0)
    assert lines()[0] == "Teacher: 10 steps, stage 1 of 3, about 8 min left in all"  # 460 s
    assert "Search: 10 steps, stage 2 of 3, about 12 min left in all" in lines()  # 2 (300 + 60) s
    assert "Search: 1/10 (10 %), loss 0, 4 min 30 s left, stage 2 of 3, about 6 min left in all" in lines()  # 270 + 2 * 60 s


def test_half_a_stage_is_compared_with_half_its_estimate(plain, clock):
    progress, lines = plain
    progress.plan([("Search", 100.0), ("Pack", 600.0)])
    with progress.stage("Search", total=10, start=5) as bar:
        work(bar, clock, 5, 10.0)  # 50 s for half of 100 s: as estimated
    with progress.stage("Pack", total=1):
        pass
    assert "Pack: 1 steps, stage 2 of 2, about 10 min left in all" in lines()


def test_stages_skipped_on_resume_count_as_done_and_unplanned_ones_do_not_count():
    plan = StagePlan((("Teacher", 100.0), ("Recovery", 60.0), ("Recovery", 120.0)))
    plan.begin("Unplanned")
    assert plan.describe(None) == ""
    plan.end(10.0, share=1.0)
    plan.begin("Recovery")
    assert plan.describe(None) == "stage 2 of 3, about 3 min left in all"
    plan.end(0.0, share=1.0)
    plan.begin("Recovery")
    assert plan.describe(None) == "stage 3 of 3, about 2 min left in all"


@pytest.mark.parametrize("total", [0, 1])
def test_a_stage_without_steps_is_no_error(plain, total):
    progress, lines = plain
    with progress.stage("Pack", total=total):
        pass
    assert lines()[-1] == "Pack: 0 steps in 0 s"


def test_an_interrupted_stage_is_not_reported_as_done(plain):
    progress, lines = plain
    with pytest.raises(KeyboardInterrupt), progress.stage("Search", total=3):
        raise KeyboardInterrupt
    assert lines() == ["Search: 3 steps"]


def test_brackets_are_text_and_long_lines_stay_whole(plain):
    progress, lines = plain
    progress.say("[bold] " + "x" * 100)
    assert lines() == ["[bold] " + "x" * 100]


def test_a_table_shows_every_cell(plain):
    progress, lines = plain
    progress.table("Results [SST-2]", ["model", "bytes"], [["full", 91], ["ours", "6.0"]])
    assert lines()[0].rstrip() == "Results [SST-2]"
    assert [re.findall(r"[\w.]+", line) for line in lines() if "│" in line] == [["full", "91"], ["ours", "6.0"]]
    assert lines()[-2].endswith("  6.0 │")


def test_a_terminal_gets_a_bar(clock):
    file = io.StringIO()
    progress = TerminalProgress(Console(file=file, force_terminal=True, width=100, _environ={"TERM": "xterm"}), clock)
    progress.plan([("Search", 10.0)])
    with progress.stage("Search", total=4) as bar:
        work(bar, clock, 3, 2.0)
        progress.say("a line above the bar")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert re.search(r"Search ━+.* 3/4 loss 2 6 s 2 s left", shown)
    assert "stage 1 of 1, about 10 s left in all" in shown
    assert "a line above the bar" in shown
    assert shown.rstrip().endswith("Search: 3 steps in 6 s, loss 2")


def test_a_pipe_gets_lines_without_control_codes():
    code = """
from autoquant.core.progress import TerminalProgress
progress = TerminalProgress()
with progress.stage("Search", total=2) as bar:
    bar.advance(note="loss 0.3")
progress.table("T", ["x" * 50, "y" * 50], [["a" * 50, "b" * 50]])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "\x1b" not in out
    assert "Search: 1 steps in 0 s, loss 0.3" in out
    assert "a" * 50 + " │ " + "b" * 50 in out


def test_silence(capsys):
    progress = SilentProgress()
    progress.plan([("Search", 1.0)])
    with progress.stage("Search", total=2) as bar:
        bar.advance(note="loss 0.3")
    progress.say("x")
    progress.table("T", ["a"], [["b"]])
    assert capsys.readouterr() == ("", "")


def test_durations_are_read_at_a_glance():
    exact = {0: "0 s", 59.4: "59 s", 59.6: "1 min 00 s", 72: "1 min 12 s", 3599.7: "1 h 00 min", 3900: "1 h 05 min"}
    rough = {0: "10 s", 14: "10 s", 16: "20 s", 54: "50 s", 56: "1 min", 91: "2 min", 3569: "59 min", 3571: "1 h 00 min"}
    assert {seconds: duration(seconds) for seconds in exact} == exact
    assert {seconds: rounded(seconds) for seconds in rough} == rough
