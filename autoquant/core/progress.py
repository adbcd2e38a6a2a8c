"""How far is it, and how long will it take? Progress on a terminal, in a log, or nowhere.

A library stays silent (`SilentProgress`); the CLI passes a `TerminalProgress`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE_SECONDS = 10.0
LOG_WIDTH = 120


class Bar(Protocol):
    """The progress of one stage."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count `steps` more as done; `note` is shown beside them ("loss 0.31, 6.0 MiB")."""


class Progress(Protocol):
    """Where a long job reports to."""

    def plan(self, stages: Sequence[tuple[str, float]]) -> None:
        """Announce the stages to come, in order, with an estimate of the seconds each takes."""

    def stage(self, title: str, total: int, start: int = 0) -> AbstractContextManager[Bar]:
        """Show a stage of `total` steps, of which a resumed one has done `start`."""

    def say(self, text: str) -> None:
        """Print a line."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table: the first column flush left, the others flush right."""


class SilentProgress:
    """Shows nothing, and is itself the bar of its stages."""

    def plan(self, stages: Sequence[tuple[str, float]]) -> None:
        pass

    def stage(self, title: str, total: int, start: int = 0) -> AbstractContextManager[Bar]:
        return nullcontext(self)

    def advance(self, steps: int = 1, note: str = "") -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        pass


class TerminalProgress:
    """A live bar on a terminal; elsewhere (a pipe, a CI log) one plain line every ten seconds."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or _stdout()
        self._clock = clock
        self._plan = StagePlan(())

    def plan(self, stages: Sequence[tuple[str, float]]) -> None:
        self._plan = StagePlan(tuple(stages))

    @contextmanager
    def stage(self, title: str, total: int, start: int = 0) -> Iterator[Bar]:
        self._plan.begin(title)
        bar = StageBar(title, total, start, self._plan, self._clock)
        if self._console.is_interactive:
            with Live(bar, console=self._console, refresh_per_second=2, transient=True):
                yield bar
        else:
            bar.on_advance = _every(LINE_SECONDS, self._clock, lambda: self.say(bar.line()))
            self.say(bar.opening())
            yield bar
        self._plan.end(bar.seconds, share=1 - start / total if total else 1.0)
        self.say(bar.summary())

    def say(self, text: str) -> None:
        # Text, since "[0.3]" in a plain string is markup to rich; soft_wrap leaves long lines whole.
        self._console.print(Text(text), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        table = Table(title=Text(title), title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(Text(column), justify="right" if index else "left")
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        self._console.print(table)


class StagePlan:
    """The stages of a whole run; its estimates are corrected by how long the finished ones really took."""

    def __init__(self, stages: tuple[tuple[str, float], ...]) -> None:
        self._stages = stages
        self._index: int | None = None  # of the stage under way, when it is a planned one
        self._next = 0
        self._measured = 0.0
        self._estimated = 0.0

    def begin(self, title: str) -> None:
        """Go to the next stage called `title`; those in between count as done (on resume they are skipped)."""
        titles = [name for name, _ in self._stages]
        self._index = titles.index(title, self._next) if title in titles[self._next :] else None
        if self._index is not None:
            self._next = self._index + 1

    def end(self, seconds: float, share: float) -> None:
        """The stage under way took `seconds` for this `share` of its steps."""
        if self._index is not None:
            self._measured += seconds
            self._estimated += self._stages[self._index][1] * share

    def describe(self, stage_left: float | None) -> str:
        """`stage 3 of 7, about 6 min left in all`, or nothing for a stage that is not planned.

        stage_left: seconds left of the stage under way; None when not known yet.
        """
        if self._index is None:
            return ""
        factor = self._measured / self._estimated if self._measured and self._estimated else 1.0
        left = self._stages[self._index][1] * factor if stage_left is None else stage_left
        left += factor * sum(seconds for _, seconds in self._stages[self._next :])
        return f"stage {self._index + 1} of {len(self._stages)}, about {rounded(left)} left in all"


@dataclass
class StageBar:
    """The numbers of a stage under way; rich draws it as a bar, `line` writes it out."""

    title: str
    total: int
    start: int
    plan: StagePlan
    clock: Callable[[], float]
    on_advance: Callable[[], None] = lambda: None
    done: int = field(init=False)
    note: str = field(init=False, default="")
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.done, self.began = self.start, self.clock()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        self.note = note or self.note
        self.on_advance()

    @property
    def seconds(self) -> float:
        """Since the stage began here; what an interrupted process spent on it is not in it."""
        return self.clock() - self.began

    @property
    def left(self) -> float | None:
        """Seconds at the speed so far, None before the first step."""
        if self.done == self.start:
            return None
        return self.seconds / (self.done - self.start) * max(self.total - self.done, 0)

    def opening(self) -> str:
        resumed = f", resumed at step {self.start}" if self.start else ""
        return _joined(f"{self.title}: {self.total} steps{resumed}", self.plan.describe(None))

    def line(self) -> str:
        percent = 100 * self.done // self.total if self.total else 100
        return _joined(f"{self.title}: {self.done}/{self.total} ({percent} %)", self.note, self._time_left(), self._overall())

    def summary(self) -> str:
        return _joined(f"{self.title}: {self.done} steps in {duration(self.seconds)}", self.note)

    def __rich__(self) -> Group:
        row = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self.total, completed=self.done, width=24)
        texts = (f"{self.done}/{self.total}", self.note, duration(self.seconds), self._time_left())
        row.add_row(Text(self.title, no_wrap=True), bar, *(Text(text, no_wrap=True, overflow="ellipsis") for text in texts))
        return Group(row, Text(self._overall(), style="dim"))

    def _time_left(self) -> str:
        return "" if self.left is None else f"{duration(self.left)} left"

    def _overall(self) -> str:
        return self.plan.describe(self.left)


def duration(seconds: float) -> str:
    """`45 s`, `1 min 12 s`, `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def rounded(seconds: float) -> str:
    """An estimate, no finer than it deserves: `40 s`, `6 min`, `1 h 05 min`."""
    if seconds < 55:
        return f"{10 * max(1, round(seconds / 10))} s"
    if seconds < 3570:
        return f"{max(1, round(seconds / 60))} min"
    return duration(60 * round(seconds / 60))


def _every(period: float, clock: Callable[[], float], action: Callable[[], None]) -> Callable[[], None]:
    """A function that does `action` when `period` seconds have passed since it last did, or was made."""
    last = clock()

    def tick() -> None:
        nonlocal last
        if clock() - last >= period:
            last = clock()
            action()

    return tick


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _stdout() -> Console:
    console = Console()
    # rich takes a pipe for 80 columns wide, which would break the lines of a table.
    return console if console.is_terminal else Console(width=LOG_WIDTH)
