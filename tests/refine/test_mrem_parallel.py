"""MREM-P with two real processes: the loss falls, a killed process ends the run with a clear error, and it goes on."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from autoquant.core.errors import RunError, TrainingError
from autoquant.refine import mrem_parallel
from autoquant.refine.mrem_parallel import Worker
from autoquant.refine.queue import InputQueue

STEPS = 40


def steps_of(log: list[dict[str, Any]], module: int) -> list[int]:
    return [line["step"] for line in log if line["module"] == module]


def workers_alive() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]


def interfere(monkeypatch: pytest.MonkeyPatch, when: int, act: Callable[[list[Worker]], None]) -> None:
    """Do something to the processes once module 1 has made `when` steps."""
    listen, acted = mrem_parallel._listen, []

    def listening(problem: Any, workers: list[Worker], bar: Any) -> None:
        listen(problem, workers, bar)
        if workers[1].done >= when and not acted:
            acted.append(True)
            act(workers)

    monkeypatch.setattr(mrem_parallel, "_listen", listening)


def test_both_modules_learn_in_processes_of_their_own(bench: Any) -> None:
    supernet, before = bench.supernet(), bench.supernet().state_dict()
    teacher = {key: tensor.clone() for key, tensor in bench.teacher.state_dict().items()}
    bench.data.labels[:] = -1_000_000  # not read
    with bench.open_context() as context:
        log = bench.refine("mrem-p", supernet, context, mrem_steps=STEPS)
    for module in (0, 1):
        losses = [line["loss"] for line in log if line["module"] == module]
        assert steps_of(log, module) == list(range(STEPS))
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    after = supernet.state_dict()
    for part in ("bert.embeddings.word_embeddings.mixed.weight", "bert.encoder.layer.1.output.dense.bias", "classifier.bias"):
        assert not torch.equal(after[f"model.{part}"], before[f"model.{part}"]), part
    assert torch.equal(after["width_logits"], before["width_logits"])
    assert all(torch.equal(tensor, teacher[key]) for key, tensor in bench.teacher.state_dict().items())
    assert not workers_alive()


def test_a_killed_process_ends_the_run_and_it_goes_on(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(workers: list[Worker]) -> None:
        os.kill(workers[1].process.pid or 0, signal.SIGKILL)

    with monkeypatch.context() as patch, bench.open_context(checkpoint_seconds=0.0) as context:
        interfere(patch, 5, kill)
        start = time.monotonic()
        with pytest.raises(TrainingError, match=r"module 2 of 2 ended at step \d+ of 40: signal 9.*--resume"):
            bench.refine("mrem-p", bench.supernet(), context, mrem_steps=STEPS)
        assert time.monotonic() - start < 300
        assert not workers_alive()
        assert context.run.load_state("mrem-p-ours-module0")["step"] > 0
        done = context.run.load_state("mrem-p-ours-module1")["step"]
        assert done > 0
    begun: list[int] = []
    with monkeypatch.context() as patch, bench.open_context() as context:
        listen = mrem_parallel._listen

        def listening(problem: Any, workers: list[Worker], bar: Any) -> None:
            listen(problem, workers, bar)
            begun.append(workers[1].done)

        patch.setattr(mrem_parallel, "_listen", listening)
        log = bench.refine("mrem-p", bench.supernet(), context, mrem_steps=STEPS)
    assert next(step for step in begun if step) >= done
    assert steps_of(log, 0) == steps_of(log, 1) == list(range(STEPS))


def test_losing_the_first_module_loses_nothing_of_the_second(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(workers: list[Worker]) -> None:
        os.kill(workers[0].process.pid or 0, signal.SIGKILL)

    with monkeypatch.context() as patch, bench.open_context() as context:  # no checkpoint before the kill
        interfere(patch, 3, kill)
        with pytest.raises(TrainingError, match=r"module 1 of 2 ended .*signal 9"):
            bench.refine("mrem-p", bench.supernet(), context, mrem_steps=4000)
        assert context.run.load_state("mrem-p-ours-module1")["step"] >= 3


def test_a_module_with_little_left_still_fills_the_next_ones_queue(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, bench.open_context() as context:
        interfere(patch, 3, lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            bench.refine("mrem-p", bench.supernet(), context, mrem_steps=STEPS * 10)
        first = context.run.load_state("mrem-p-ours-module0")
        context.run.save_state("mrem-p-ours-module0", {**first, "step": STEPS - 1})
        context.run.discard_state("mrem-p-ours-module1")
        log = bench.refine("mrem-p", bench.supernet(), context, mrem_steps=STEPS)
    assert steps_of(log, 1) == list(range(STEPS))


def test_ctrl_c_saves_every_module(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, bench.open_context() as context:
        interfere(patch, 3, lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            bench.refine("mrem-p", bench.supernet(), context, mrem_steps=400)
        saved = [context.run.load_state(f"mrem-p-ours-module{rank}")["step"] for rank in (0, 1)]
    assert min(saved) > 0
    assert not workers_alive()


def test_a_loss_that_is_not_finite_is_named(bench: Any) -> None:
    with bench.open_context() as context:
        problem = bench.problem("mrem-p", bench.supernet(), context, mrem_steps=STEPS)
        settings = dataclasses.replace(problem.settings, mrem_learning_rate=1e30)
        with pytest.raises(TrainingError, match=r"Reconstruct module \d: the loss is (nan|inf)"):
            mrem_parallel.ParallelMrem().refine(dataclasses.replace(problem, settings=settings))


def test_torchrun_must_bring_a_process_for_every_module(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    with bench.open_context() as context, pytest.raises(RunError, match="3 processes for 2 modules"):
        bench.refine("mrem-p", bench.supernet(), context)


# The queue


def batch(number: int) -> tuple[np.ndarray, torch.Tensor]:
    return np.array([number]), torch.full((1, 1, 1), float(number))


def test_the_queue_keeps_the_last_batches_and_gives_them_again() -> None:
    queue, draw = InputQueue(3), np.random.default_rng(0)
    for number in range(5):
        queue.put(batch(number))
    seen = [int(queue.sample(draw)[0][0]) for _ in range(60)]
    assert set(seen) == {2, 3, 4}
    assert queue.arrived == 5


def test_waiting_ends_when_enough_have_arrived_or_none_will() -> None:
    queue = InputQueue(2)
    threading.Timer(0.1, lambda: [queue.put(batch(n)) for n in range(4)]).start()
    queue.wait_for(4, stopped=lambda: False)
    assert queue.arrived == 4
    queue.wait_for(9, stopped=lambda: True)
    queue.ended = True
    queue.wait_for(9, stopped=lambda: False)  # no more will come
    queue.error = RuntimeError("Connection closed by peer")
    with pytest.raises(TrainingError, match="is lost: Connection closed"):
        queue.wait_for(9, stopped=lambda: False)
    with pytest.raises(TrainingError, match="is lost"):
        queue.sample(np.random.default_rng(0))
