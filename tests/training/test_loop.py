"""A run that was interrupted ends where the one that was not does: same weights, same log."""

import itertools
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from autoquant.core.errors import TrainingError
from autoquant.training import loop
from autoquant.training.loop import Context, run_steps, seed_step

STEPS = 12
ContextOpener = Callable[..., Any]


class Job:
    """A least-squares fit on random inputs; `trouble(number)` is called half way through a step, after the first update."""

    def __init__(self, trouble: Callable[[int], None] = lambda number: None) -> None:
        torch.manual_seed(0)
        self.model, self.trouble = nn.Linear(3, 1), trouble
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.steps: list[int] = []

    def step(self, number: int) -> dict[str, float]:
        self.steps.append(number)
        for half in range(2):
            if half:
                self.trouble(number)
            x = torch.randn(8, 3)
            loss = (self.model(x)[:, 0] - x.sum(1)).square().mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {"loss": loss.item(), "twice": 2.0 * number}

    def run(self, context: Context, steps: int = STEPS, **options: Any) -> int:
        state: Any = {"model": self.model, "optimizer": self.optimizer}
        return run_steps(context, "fit", "Fit", steps, self.step, state, **options)


@pytest.fixture
def whole(open_context: ContextOpener) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Weights and log of a run without interruption."""
    job = Job()
    with open_context("whole") as context:
        assert job.run(context) == STEPS
        return job.model.weight, context.run.read_log()


def at(step: int, action: Callable[[], None]) -> Callable[[int], None]:
    return lambda number: action() if number == step else None


def test_every_step_is_logged(whole: tuple[torch.Tensor, list[dict[str, Any]]]) -> None:
    assert [line["step"] for line in whole[1]] == list(range(STEPS))
    assert {line["stage"] for line in whole[1]} == {"fit"}
    assert whole[1][5]["twice"] == 10.0
    assert whole[1][-1]["loss"] < whole[1][0]["loss"]


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_waits_for_the_step_and_the_run_goes_on_where_it_was(
    open_context: ContextOpener, whole: tuple[torch.Tensor, list[dict[str, Any]]], signal_: signal.Signals
) -> None:
    interrupted, resumed = Job(at(4, lambda: signal.raise_signal(signal_))), Job()
    with open_context() as context, pytest.raises(KeyboardInterrupt):
        interrupted.run(context)
    with open_context() as context:
        assert resumed.run(context) == STEPS
        log = context.run.read_log()
    assert interrupted.steps == list(range(5))
    assert resumed.steps == list(range(5, STEPS))
    assert torch.equal(resumed.model.weight, whole[0])
    assert log == whole[1]


def crash() -> None:
    raise SystemError


def second_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("trouble", "error"), [(crash, SystemError), (second_ctrl_c, KeyboardInterrupt)])
@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
def test_what_ends_half_way_goes_on_from_the_last_checkpoint(
    trouble: Callable[[], None],
    error: type[BaseException],
    checkpoint_seconds: float,
    open_context: ContextOpener,
    whole: tuple[torch.Tensor, list[dict[str, Any]]],
) -> None:
    with open_context(checkpoint_seconds=checkpoint_seconds) as context, pytest.raises(error):
        Job(at(4, trouble)).run(context)
    resumed = Job()
    with open_context() as context:
        resumed.run(context)
        log = context.run.read_log()
    assert resumed.steps[0] == (4 if checkpoint_seconds == 0 else 0)
    assert torch.equal(resumed.model.weight, whole[0])
    assert log == whole[1]


def test_what_was_logged_after_the_checkpoint_is_logged_once(
    open_context: ContextOpener, whole: tuple[torch.Tensor, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock ticks when it is read, so 2.5 seconds are over after three steps: the checkpoint is a step behind the log."""
    clock = itertools.count()
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    with open_context(checkpoint_seconds=2.5) as context:
        with pytest.raises(SystemError):
            Job(at(4, crash)).run(context)
        assert [line["step"] for line in context.run.read_log()] == [0, 1, 2, 3]
    resumed = Job()
    with open_context() as context:
        resumed.run(context)
        assert context.run.read_log() == whole[1]
    assert resumed.steps == list(range(3, STEPS))
    assert torch.equal(resumed.model.weight, whole[0])


def test_the_handler_of_ctrl_c_is_put_back(open_context: ContextOpener) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with open_context() as context:
        Job().run(context, 2)
        assert signal.getsignal(signal.SIGINT) is handler


def test_it_runs_in_a_thread(open_context: ContextOpener) -> None:
    job = Job()
    with open_context() as context:
        thread = threading.Thread(target=job.run, args=(context, 2))
        thread.start()
        thread.join()
    assert job.steps == [0, 1]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(loss: float, open_context: ContextOpener) -> None:
    with open_context() as context:
        with pytest.raises(TrainingError, match=r"Fit: the loss is (nan|inf) at step 3 of 10\. Lower the learning rate"):
            run_steps(context, "fit", "Fit", 10, lambda number: {"loss": loss if number == 3 else 1.0}, {})
        assert [line["step"] for line in context.run.read_log()] == [0, 1, 2]


def test_stop_ends_the_loop_early(open_context: ContextOpener) -> None:
    job = Job()
    with open_context() as context:
        assert job.run(context, stop=lambda: len(job.steps) == 3) == 3
    assert job.steps == [0, 1, 2]


def test_a_finished_job_that_was_saved_is_not_done_again(open_context: ContextOpener) -> None:
    with open_context(checkpoint_seconds=0.0) as context:
        Job().run(context)
        again = Job()
        assert again.run(context) == STEPS
    assert again.steps == []


def test_random_numbers_are_a_function_of_seed_stage_and_step() -> None:
    def drawn(*key: Any) -> float:
        seed_step(*key)
        return torch.rand(()).item()

    keys = [(0, "fit", 0), (0, "fit", 1), (0, "fits", 0), (1, "fit", 0)]
    values = [drawn(*key) for key in keys]
    assert len(set(values)) == 4
    assert [drawn(*key) for key in keys] == values
