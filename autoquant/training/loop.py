"""The loop that teacher, search and recovery share: steps, a log line each, checkpoints, and a clear end on divergence."""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from autoquant.core.errors import TrainingError
from autoquant.core.progress import Progress
from autoquant.core.run import RunDirectory


class Stateful(Protocol):
    """Anything whose state is saved and restored: a module, an optimizer, a controller."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass(frozen=True, eq=False)
class Context:
    """Where training runs and what it reports to."""

    run: RunDirectory
    progress: Progress
    device: torch.device
    seed: int
    precision: str = "fp32"
    checkpoint_seconds: float = 60.0

    def autocast(self) -> torch.autocast:
        """bfloat16 autocast where asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def seed_step(seed: int, stage: str, step: int) -> None:
    """Seed torch for one step of one stage: randomness is a function of the step, so a resumed run repeats it."""
    digest = hashlib.sha256(f"{seed}/{stage}/{step}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "little"))


def run_steps(
    context: Context,
    stage: str,
    title: str,
    steps: int,
    step: Callable[[int], Mapping[str, float]],
    state: Mapping[str, Stateful],
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Call `step(0 .. steps - 1)`; each returns numbers to log, `loss` among them. Returns the number of steps done.

    Goes on from the stage's checkpoint if there is one; saves one every `checkpoint_seconds` and at Ctrl-C, after the step
    under way; raises TrainingError when the loss is not finite. `stop` ends the loop early.
    """
    start = _restore(context, stage, state)
    saved_at = time.monotonic()
    with context.progress.stage(title, total=steps, start=start) as bar, interrupt_waits() as interrupted:
        done = start
        while done < steps and not stop():
            seed_step(context.seed, stage, done)
            values = step(done)
            check_finite(title, values, done, steps)
            context.run.log(stage, step=done, **values)
            done += 1
            part = f"module {values['module'] + 1}, " if "module" in values else ""
            bar.advance(note=f"{part}loss {values['loss']:.3f}")
            if interrupted.is_set() or time.monotonic() - saved_at > context.checkpoint_seconds:
                _save(context, stage, state, done)
                saved_at = time.monotonic()
            if interrupted.is_set():
                raise KeyboardInterrupt
    if done > start:
        _save(context, stage, state, done)  # a later stage's checkpoint must not outrun this one's
    return done


def check_finite(title: str, values: Mapping[str, float], step: int, steps: int) -> None:
    """Raise TrainingError for the first of a step's numbers that is not finite."""
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise TrainingError(
            f"{title}: the {broken[0]} is {values[broken[0]]} at step {step} of {steps}. Lower the learning rate, "
            "and check the data for broken values."
        )


@contextmanager
def interrupt_waits() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM only set the event, since half a step could not be resumed; a second one does not wait."""
    interrupted = threading.Event()
    defaults: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    # threads may not set handlers, and a handler of the caller's stays in charge
    main = threading.current_thread() is threading.main_thread()
    ours = [number for number, default in defaults.items() if main and signal.getsignal(number) is default]

    def press(number: int, _: object) -> None:
        interrupted.set()
        signal.signal(number, defaults[signal.Signals(number)])

    for number in ours:
        signal.signal(number, press)
    try:
        yield interrupted
    finally:
        for number in ours:
            signal.signal(number, defaults[number])


def _save(context: Context, stage: str, state: Mapping[str, Stateful], done: int) -> None:
    context.run.save_state(stage, {"step": done, **{name: item.state_dict() for name, item in state.items()}})


def _restore(context: Context, stage: str, state: Mapping[str, Stateful]) -> int:
    saved = context.run.load_state(stage)
    if saved is None:
        context.run.truncate_log(stage, 0)
        return 0
    for name, item in state.items():
        item.load_state_dict(saved[name])
    context.run.truncate_log(stage, saved["step"])
    return int(saved["step"])
