"""How much memory did a piece of work take at most? Sampled, since the kernel keeps one peak for a whole process."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil

EVERY_SECONDS = 0.1


@dataclass
class Peak:
    """The largest resident set seen so far, MiB: of this process and the workers that it started."""

    mib: float = 0.0
    _process: psutil.Process = field(default_factory=psutil.Process, repr=False)

    def look(self) -> None:
        """Take one more sample."""
        resident = self._process.memory_info().rss
        for worker in multiprocessing.active_children():
            with suppress(psutil.Error):  # it may be gone by now
                resident += psutil.Process(worker.pid).memory_info().rss
        self.mib = max(self.mib, resident / 2**20)


@contextmanager
def watched_memory() -> Iterator[Peak]:
    """Watch the memory of a block, ten times a second; on a GPU the device's own memory is not in it."""
    peak, stop = Peak(), threading.Event()

    def watch() -> None:
        while not stop.wait(EVERY_SECONDS):
            peak.look()

    peak.look()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        peak.look()
