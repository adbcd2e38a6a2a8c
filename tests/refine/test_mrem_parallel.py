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
from autoquant.refine import mrem_parallel, queue
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


def saved_steps(context: Any, module: int) -> int:
    return len(context.run.load_state(f"mrem-p-ours-module{module}")["losses"])


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
        assert saved_steps(context, 0) > 0
        done = saved_steps(context, 1)
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
        assert saved_steps(context, 1) >= 3


def test_a_module_with_little_left_still_fills_the_next_ones_queue(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, bench.open_context() as context:
        interfere(patch, 3, lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            bench.refine("mrem-p", bench.supernet(), context, mrem_steps=STEPS * 10)
        first = context.run.load_state("mrem-p-ours-module0")
        context.run.save_state("mrem-p-ours-module0", {**first, "losses": torch.ones(STEPS - 1)})
        context.run.discard_state("mrem-p-ours-module1")
        log = bench.refine("mrem-p", bench.supernet(), context, mrem_steps=STEPS)
    assert steps_of(log, 1) == list(range(STEPS))


def test_ctrl_c_saves_every_module(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, bench.open_context() as context:
        interfere(patch, 3, lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            bench.refine("mrem-p", bench.supernet(), context, mrem_steps=400)
        log = context.run.read_log()
        for module in (0, 1):  # every step in a checkpoint is in the log: it will not be made again
            assert steps_of(log, module) == list(range(saved_steps(context, module)))
            assert saved_steps(context, module) > 0
    assert not workers_alive()


def test_steps_that_nobody_logged_are_logged_later(bench: Any) -> None:
    """The watcher was killed with lines on their way, or another machine watched."""
    with bench.open_context() as context:
        for step in (0, 1, 4):
            context.run.log("mrem-p-ours-module1", step=step, module=1, loss=0.5)
        context.run.log("other", step=9, loss=1.0)
        mrem_parallel.log_missing(context.run, "mrem-p-ours", 1, [0.5, 0.5, 0.25, 0.125])
        log = context.run.read_log()
    ours = [(line["step"], line["loss"]) for line in log if line["stage"] != "other"]
    assert ours == [(0, 0.5), (1, 0.5), (2, 0.25), (3, 0.125)]
    assert log[2] == {"stage": "other", "step": 9, "loss": 1.0}


def test_a_loss_that_is_not_finite_is_named(bench: Any) -> None:
    with bench.open_context() as context:
        problem = bench.problem("mrem-p", bench.supernet(), context, mrem_steps=STEPS)
        settings = dataclasses.replace(problem.settings, mrem_learning_rate=1e30)
        with pytest.raises(TrainingError, match=r"module \d: the loss is (nan|inf).*Lower the learning rate") as raised:
            mrem_parallel.ParallelMrem().refine(dataclasses.replace(problem, settings=settings))
        assert "--resume" not in str(raised.value)


def test_every_process_gets_what_its_module_needs(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[mrem_parallel.Job] = []

    def started(jobs: Any) -> Any:
        begun.extend(jobs)
        raise InterruptedError

    monkeypatch.setattr(mrem_parallel, "_started", started)
    with bench.open_context(precision="bf16", checkpoint_seconds=7.0) as context, pytest.raises(InterruptedError):
        bench.refine("mrem-p", bench.supernet(), dataclasses.replace(context, seed=3))
    assert [(job.rank, job.world, job.module.first, job.name) for job in begun] == [
        (0, 2, 0, "mrem-p-ours-module0"),
        (1, 2, 1, "mrem-p-ours-module1"),
    ]
    assert [job.lesson.start is None for job in begun] == [True, False]
    for job in begun:
        ours = job.context()
        assert (ours.seed, ours.precision, ours.checkpoint_seconds, ours.device) == (3, "bf16", 7.0, torch.device("cpu"))
        assert ours.run.path == context.run.path
        assert (job.compile, job.threads, job.tokens) == (False, 1, 12)


def test_torchrun_must_bring_a_process_for_every_module(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    with bench.open_context() as context, pytest.raises(RunError, match="3 processes for 2 modules"):
        bench.refine("mrem-p", bench.supernet(), context)


# The queue


def batch(number: int) -> tuple[np.ndarray, torch.Tensor]:
    return np.array([number]), torch.full((1, 1, 1), float(number))


def test_the_queue_keeps_the_last_batches_and_gives_them_again() -> None:
    filled, draw = InputQueue(3), np.random.default_rng(0)
    for number in range(5):
        filled.put(batch(number))
    seen = [int(filled.sample(draw)[0][0]) for _ in range(60)]
    assert set(seen) == {2, 3, 4}
    assert filled.arrived == 5


def test_waiting_ends_when_enough_have_arrived_or_none_will() -> None:
    waiting = InputQueue(2)
    threading.Timer(0.1, lambda: [waiting.put(batch(n)) for n in range(4)]).start()
    waiting.wait_for(4, stopped=lambda: False)
    assert waiting.arrived == 4
    waiting.wait_for(9, stopped=lambda: True)
    waiting.ended = True
    waiting.wait_for(9, stopped=lambda: False)  # no more will come
    waiting.error = RuntimeError("Connection closed by peer")
    with pytest.raises(TrainingError, match="is lost: Connection closed"):
        waiting.wait_for(9, stopped=lambda: False)
    with pytest.raises(TrainingError, match="is lost"):
        waiting.sample(np.random.default_rng(0))


def test_a_sender_that_is_too_slow_drops_its_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(queue.dist, "send", lambda tensor, target: sent.append(tensor))
    sender = queue.Sender(1, 2, torch.device("cpu"))
    for number in range(5):  # before the thread starts: nothing is sent meanwhile
        sender.put(*batch(number))
    sender.start()
    sender.close()
    assert [int(indices[0]) for indices in sent[1::3]] == [3, 4]
    assert sent[-1].tolist() == [0, 0, 0]  # the end


def test_a_module_begins_when_the_one_before_has_made_t0_batches(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    listen, before = mrem_parallel._listen, []

    def listening(problem: Any, workers: list[Worker], bar: Any) -> None:
        listen(problem, workers, bar)
        if workers[1].done and not before:
            before.append(workers[0].done)

    monkeypatch.setattr(mrem_parallel, "_listen", listening)
    with bench.open_context() as context:
        problem = bench.problem("mrem-p", bench.supernet(), context, mrem_steps=STEPS)
        settings = dataclasses.replace(problem.settings, parallel_fill=30, parallel_queue=30)
        mrem_parallel.ParallelMrem().refine(dataclasses.replace(problem, settings=settings))
    assert before[0] >= 30
