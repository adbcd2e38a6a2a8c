"""MREM-P: all modules at once, one process each, on torch.distributed (Bai et al. 2022, section 3.2 and algorithm 1).

The command starts the processes itself, or, under `torchrun --nproc-per-node N`, each of its copies starts the one of its rank.
A module begins when `parallel_fill` batches (t0) have come from the one before it, and from then on waits for nobody.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from autoquant.core.errors import AutoquantError, RunError, TrainingError
from autoquant.core.progress import Bar, SilentProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import RecoverySettings
from autoquant.refine.base import RefineProblem
from autoquant.refine.modules import Module
from autoquant.refine.mrem import Reconstruction, prepare
from autoquant.refine.queue import InputQueue, LostNeighbourError, Receiver, Sender
from autoquant.refine.states import Lesson
from autoquant.supernet.mixing import KERNELS
from autoquant.training.batches import BatchOrder, longest
from autoquant.training.loop import Context, check_finite, interrupt_waits, seed_step
from autoquant.training.products import fast_products

MOST_SECONDS = 7 * 24 * 3600  # a faster module may wait for a slower one at the end; the dead are noticed by their connections
GRACE_SECONDS = 30  # to write checkpoints before the processes are ended


def module_stage(stage: str, rank: int) -> str:
    """Names a module's checkpoint and log lines."""
    return f"{stage}-module{rank}"


def result_stage(stage: str) -> str:
    """Names the checkpoint of all modules once they are done."""
    return f"{stage}-modules"


def log_missing(run: RunDirectory, stage: str, rank: int, losses: Sequence[float]) -> None:
    """Log the steps of a module that were made but not logged: nobody was watching any more, or only another machine was."""
    name = module_stage(stage, rank)
    run.truncate_log(name, len(losses))
    known = {line["step"] for line in run.read_log() if line["stage"] == name}
    for step, loss in enumerate(losses):
        if step not in known:
            run.log(name, step=step, module=rank, loss=loss)


def torchrun_rank() -> int | None:
    """The rank of this process where torchrun started it, else None."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


def first_rank_is_done(rank: int, done: bool) -> bool:
    """Under torchrun: whether the first process has the result already. `done`: what this one knows of itself.

    Only the first keeps it, and where it is there, no other may wait for a worker of the first to meet its own.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=MOST_SECONDS)))
    key = f"autoquant-done-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if rank == 0:
        store.set(key, str(done))
    return bool(store.get(key) == b"True")


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """Everything the process of one module needs."""

    rank: int
    world: int
    module: Module
    lesson: Lesson
    settings: RecoverySettings
    stage: str
    run_path: Path
    device: str
    seed: int
    precision: str
    checkpoint_seconds: float
    threads: int
    compile: bool
    tokens: int
    rendezvous: str
    parent: int

    @property
    def name(self) -> str:
        return module_stage(self.stage, self.rank)

    def context(self) -> Context:
        run, device = RunDirectory(self.run_path), torch.device(self.device)
        return Context(run, SilentProgress(), device, self.seed, self.precision, self.checkpoint_seconds)


@dataclass
class Worker:
    """A process and what it said."""

    rank: int
    process: BaseProcess
    events: Connection
    done: int = 0
    finished: bool = False
    failure: str | None = None
    kind: str = ""
    """Of the failure: `lost` (a neighbour ended), `advice` (it says itself what to do), or `failure`."""


@dataclass(frozen=True)
class ParallelMrem:
    """MREM-P. Asynchronous: it resumes, but not to the same bytes."""

    def refine(self, problem: RefineProblem) -> None:
        stage, context, rank = problem.stage, problem.context, torchrun_rank()
        modules, lessons = prepare(problem)
        if context.run.load_state(result_stage(stage)) is None:
            self._run(problem, modules, lessons, rank)
        result = context.run.load_state(result_stage(stage))
        if result is not None:  # on the first rank, which has them all
            for number, (module, state) in enumerate(zip(modules, result["modules"], strict=True)):
                module.load_state_dict(state)
                log_missing(context.run, stage, number, result["losses"][number].tolist())

    def _run(self, problem: RefineProblem, modules: list[Module], lessons: list[Lesson], rank: int | None) -> None:
        world, context, settings = len(modules), problem.context, problem.settings
        if rank is not None and int(os.environ["WORLD_SIZE"]) != world:
            raise RunError(f"torchrun started {os.environ['WORLD_SIZE']} processes for {world} modules: give it that number.")
        ranks = list(range(world)) if rank is None else [rank]
        here = world if rank is None else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        with _rendezvous(rank) as rendezvous:
            jobs = [
                Job(
                    rank=r,
                    world=world,
                    module=modules[r],
                    lesson=lessons[r],
                    settings=settings,
                    stage=problem.stage,
                    run_path=context.run.path.absolute(),
                    device=_device(context.device, r),
                    seed=context.seed,
                    precision=context.precision,
                    checkpoint_seconds=context.checkpoint_seconds,
                    threads=max(1, torch.get_num_threads() // here),
                    compile=KERNELS.compile,
                    tokens=longest(problem.data),
                    rendezvous=rendezvous,
                    parent=os.getpid(),
                )
                for r in ranks
            ]
            with _started(jobs) as (workers, stop):
                _watch(problem, workers, world, stop)


def _device(device: torch.device, rank: int) -> str:
    """One GPU a process where there are that many."""
    return f"cuda:{rank % torch.cuda.device_count()}" if device.type == "cuda" else str(device)


@contextmanager
def _rendezvous(rank: int | None) -> Iterator[str]:
    """Where the processes meet: a file of ours, or torchrun's store."""
    if rank is not None:
        yield "env://"
        return
    with tempfile.TemporaryDirectory(prefix="autoquant-") as folder:
        yield f"file://{folder}/rendezvous"


@contextmanager
def _started(jobs: Sequence[Job]) -> Iterator[tuple[list[Worker], Event]]:
    """Processes that do not outlive this block."""
    spawn = get_context("spawn")
    stop = spawn.Event()
    workers = []
    try:
        for job in jobs:
            ours, theirs = spawn.Pipe(duplex=False)
            # as bytes: shared memory, torch's own way, is small in many containers
            process = spawn.Process(target=work, args=(_to_bytes(job), theirs, stop), daemon=True)
            process.start()
            theirs.close()
            workers.append(Worker(job.rank, process, ours))
        yield workers, stop
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()


def _to_bytes(job: Job) -> bytes:
    module = copy.deepcopy(job.module).cpu()
    for part in module.modules():
        part._forward_hooks.clear()  # transformers' own, which cannot be sent
    return pickle.dumps(dataclasses.replace(job, module=module))


# In the process that watches --------------------------------------------------------------------------------------------


def _watch(problem: RefineProblem, workers: list[Worker], world: int, stop: Event) -> None:
    """Log and show what the processes report until all are done. Raises TrainingError if one fails or dies.

    `world`: how many modules there are, of which a torchrun process watches one.
    """
    context, steps, launcher = problem.context, problem.settings.mrem_steps, os.getppid()
    with context.progress.stage("Reconstruct", total=steps * len(workers)) as bar, interrupt_waits() as interrupted:
        bar.advance(0, note=f"starting {len(workers)} processes")
        while not all(worker.finished for worker in workers):
            _listen(problem, workers, bar)
            if any(not w.process.is_alive() for w in workers):
                _listen(problem, workers, bar)  # what they said last
            failed = [w for w in workers if not w.finished and (w.failure or not w.process.is_alive())]
            if failed:
                _end(problem, workers, stop, bar)
                raise TrainingError(_describe(failed, world, problem))
            if torchrun_rank() is not None and os.getppid() != launcher:
                _end(problem, workers, stop, bar)
                raise TrainingError("torchrun has ended before its processes: start it again with --resume.")
            if interrupted.is_set():
                _end(problem, workers, stop, bar)
                raise KeyboardInterrupt


def _listen(problem: RefineProblem, workers: list[Worker], bar: Bar) -> None:
    run, waiting = problem.context.run, {w.events: w for w in workers if not w.events.closed}
    for events in connection.wait(list(waiting), timeout=0.2):
        assert isinstance(events, Connection)
        worker = waiting[events]
        try:
            while events.poll():
                kind, value = events.recv()
                if kind == "begin":
                    worker.done = len(value)
                    log_missing(run, problem.stage, worker.rank, value)
                    bar.advance(worker.done)
                elif kind == "step":
                    run.log(module_stage(problem.stage, worker.rank), step=worker.done, module=worker.rank, loss=value)
                    worker.done += 1
                    at = "/".join(str(w.done) for w in workers)
                    bar.advance(note=f"modules at {at}, loss {value:.3f} of module {worker.rank + 1}")
                elif kind == "done":
                    worker.finished = True
                else:
                    worker.failure, worker.kind = value, kind
        except EOFError:
            events.close()


def _end(problem: RefineProblem, workers: list[Worker], stop: Event, bar: Bar) -> None:
    """Let the processes write their checkpoints; what they did until then is logged, since they will not do it again."""
    stop.set()
    end = time.monotonic() + GRACE_SECONDS
    while any(w.process.is_alive() for w in workers) and time.monotonic() < end:
        _listen(problem, workers, bar)  # also, a process that reports into a full pipe does not end
    _listen(problem, workers, bar)


def _describe(failed: Sequence[Worker], world: int, problem: RefineProblem) -> str:
    """What went wrong first: a process that was killed or found something wrong, not one that only lost its neighbour."""
    killed = [w for w in failed if (w.process.exitcode or 0) < 0]
    said = [w for w in failed if w.failure and w.kind != "lost"]
    worker = [*killed, *said, *failed][0]
    code = worker.process.exitcode
    reason = f"signal {-(code or 0)}" if killed else worker.failure or f"exit code {code}"
    advice = "" if worker.kind == "advice" and not killed else " What was done is saved: run the same command with --resume."
    return (
        f"The process of module {worker.rank + 1} of {world} ended at step {worker.done} of {problem.settings.mrem_steps}: "
        f"{reason.rstrip('.')}.{advice}"
    )


# In the process of a module ---------------------------------------------------------------------------------------------


def work(job_bytes: bytes, events: Connection, stop: Event) -> None:
    """A module's process from beginning to end; what it has to say goes through `events`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the watcher decides
    job: Job = pickle.loads(job_bytes)
    threading.Thread(target=_end_with, args=(job.parent,), daemon=True).start()
    torch.set_num_threads(job.threads)
    KERNELS.compile = job.compile
    code = 0
    try:
        _join_group(job)
        with fast_products(job.device, job.tokens):
            losses = _train(job, events, stop)
        if losses is not None:
            _deliver(job, losses)
            events.send(("done", None))
    except AutoquantError as error:
        events.send(("lost" if isinstance(error, LostNeighbourError) else "advice", str(error)))
        code = 1
    except Exception as error:  # whatever it is, the watcher says it in one line
        events.send(("failure", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))
        code = 1
    events.close()
    sys.stdout.flush()
    os._exit(code)  # threads may still wait on connections whose other end is gone


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _join_group(job: Job) -> None:
    if job.rendezvous.startswith("file://") and "lo" in [name for _, name in socket.if_nameindex()]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all on this machine, whose name may not resolve
    backend = "cpu:gloo,cuda:nccl" if _on_own_gpus(job) else "gloo"
    wait = timedelta(seconds=MOST_SECONDS)
    dist.init_process_group(backend, init_method=job.rendezvous, rank=job.rank, world_size=job.world, timeout=wait)


def _on_own_gpus(job: Job) -> bool:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", job.world)) if job.rendezvous == "env://" else job.world
    return job.device.startswith("cuda") and torch.cuda.device_count() >= local


def _train(job: Job, events: Connection, stop: Event) -> list[float] | None:
    """All steps of one module, and the loss at each; None when it was asked to stop before the last, its state saved."""
    context, steps = job.context(), job.settings.mrem_steps
    job.module.to(context.device)
    task = Reconstruction(job.module, job.lesson, job.settings, context)
    losses = _restore(job, task, context)
    first = len(losses)
    events.send(("begin", losses))
    link = context.device if _on_own_gpus(job) else torch.device("cpu")
    feed, sender = _Feed(job, link, stop), None
    if job.rank + 1 < job.world:
        sender = Sender(job.rank + 1, job.settings.parallel_queue, link)
        sender.start()
    saved_at = time.monotonic()
    try:
        feed.wait()
        while (done := len(losses)) < steps and not stop.is_set():
            seed_step(job.seed, job.name, done)
            indices, student = feed.batch(done)
            loss, output = task.step(done, indices, student)
            check_finite(f"Reconstruct module {job.rank + 1}", {"loss": loss}, done, steps)
            if sender:
                sender.put(indices, output)
            losses.append(loss)
            events.send(("step", loss))
            if time.monotonic() - saved_at > context.checkpoint_seconds:
                _save(job, task, context, losses)
                saved_at = time.monotonic()
        # resumed so late that the next module's queue is not full yet
        for step in range(min(job.settings.parallel_fill, steps) - (len(losses) - first)):
            if sender and not stop.is_set():
                indices, student = feed.batch(step)
                sender.put(indices, task.output(indices, student))
    except LostNeighbourError:
        _save(job, task, context, losses)
        raise
    if len(losses) > first:
        _save(job, task, context, losses)
    if sender and not stop.is_set():
        sender.close()
    return losses if len(losses) == steps and not stop.is_set() else None


class _Feed:
    """Where a module's batches come from: the texts themselves, or the queue that the module before fills."""

    def __init__(self, job: Job, link: torch.device, stop: Event) -> None:
        self.job, self.stop = job, stop
        self.order = BatchOrder(job.lesson.data, job.settings.batch_size, job.seed)
        self.queue: InputQueue | None = None
        if job.rank:
            self.queue = InputQueue(job.settings.parallel_queue)
            Receiver(self.queue, job.rank - 1, link).start()

    def wait(self) -> None:
        """The warm-up: until the queue holds t0 batches."""
        if self.queue:
            fill = min(self.job.settings.parallel_fill, self.job.settings.mrem_steps)
            self.queue.wait_for(fill, self.stop.is_set)

    def batch(self, step: int) -> tuple[np.ndarray, Tensor | None]:
        """Texts of a step, and what the quantised network before this module made of them."""
        if self.queue is None:
            return self.order.indices(step), None
        indices, hidden = self.queue.sample(np.random.default_rng((self.job.seed, self.job.rank, step)))
        return indices, hidden.to(self.job.device).float()


def _restore(job: Job, task: Reconstruction, context: Context) -> list[float]:
    """The loss at every step that is done already."""
    saved = context.run.load_state(job.name)
    if saved is None:
        return []
    job.module.load_state_dict(saved["module"])
    task.optimizer.load_state_dict(saved["optimizer"])
    losses: list[float] = saved["losses"].tolist()
    return losses


def _save(job: Job, task: Reconstruction, context: Context, losses: Sequence[float]) -> None:
    state = {"losses": _tensor(losses), "module": job.module.state_dict(), "optimizer": task.optimizer.state_dict()}
    context.run.save_state(job.name, state)


def _tensor(losses: Sequence[float]) -> Tensor:
    return torch.tensor(losses, dtype=torch.float64)


def _deliver(job: Job, losses: Sequence[float]) -> None:
    """Every module's result goes to the first process, which writes them down together."""
    state: dict[str, Any] = {name: tensor.cpu() for name, tensor in job.module.state_dict().items()}
    gathered: list[Any] | None = [None] * job.world if job.rank == 0 else None
    dist.gather_object((state, _tensor(losses)), gathered)
    if gathered is not None:
        states, curves = zip(*gathered, strict=True)
        job.context().run.save_state(result_stage(job.stage), {"modules": list(states), "losses": list(curves)})
