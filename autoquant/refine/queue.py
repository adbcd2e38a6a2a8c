"""What flows between two modules of MREM-P: batches in a bounded first-in-first-out queue, sent and received beside the training.

A batch is the indices of its texts and the module's output for them. Nobody waits: what is full loses its oldest batch, and a
module takes any batch that is in its queue, again and again (Bai et al. 2022, section 3.2). No gradient is sent.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from autoquant.core.errors import TrainingError

Batch = tuple[np.ndarray, Tensor]
POLL_SECONDS = 0.05


class LostNeighbourError(TrainingError):
    """The process of the module before has died: not this one's fault, whose state is good."""


class InputQueue:
    """The last `capacity` batches that arrived."""

    def __init__(self, capacity: int) -> None:
        self._batches: deque[Batch] = deque(maxlen=capacity)
        self._lock = threading.Lock()
        self.arrived = 0
        self.ended = False
        self.error: BaseException | None = None

    def put(self, batch: Batch) -> None:
        with self._lock:
            self._batches.append(batch)
            self.arrived += 1

    def sample(self, draw: np.random.Generator) -> Batch:
        """Any of them, all equally likely; it stays. Raises LostNeighbourError if no more will come because a process died."""
        self._check()
        with self._lock:
            return self._batches[int(draw.integers(len(self._batches)))]

    def wait_for(self, count: int, stopped: Callable[[], bool]) -> None:
        """Until so many batches have arrived, or all that ever will, or `stopped` says so. Raises LostNeighbourError."""
        while self.arrived < count and not stopped():
            self._check()
            if self.ended and self.arrived:
                return
            time.sleep(POLL_SECONDS)

    def _check(self) -> None:
        if self.error is not None:
            raise LostNeighbourError(f"The module before this one is lost: {self.error}")


class Receiver(threading.Thread):
    """Fills a queue from the process before this one until that one says it is done."""

    def __init__(self, queue: InputQueue, source: int, device: torch.device) -> None:
        super().__init__(daemon=True)
        self.queue, self.source, self.device = queue, source, device

    def run(self) -> None:
        _leave_the_training_alone(self.device)
        try:
            while (batch := self._receive()) is not None:
                self.queue.put(batch)
            self.queue.ended = True
        except (RuntimeError, ValueError) as error:  # the connection is gone
            self.queue.error = error

    def _receive(self) -> Batch | None:
        shape = torch.empty(3, dtype=torch.int64, device=self.device)
        dist.recv(shape, self.source)
        count, tokens, width = shape.tolist()
        if not count:
            return None
        indices = torch.empty(count, dtype=torch.int64, device=self.device)
        hidden = torch.empty(count, tokens, width, dtype=torch.float16, device=self.device)
        dist.recv(indices, self.source)
        dist.recv(hidden, self.source)
        return indices.cpu().numpy(), hidden.cpu()


class Sender(threading.Thread):
    """Sends batches to the process after this one; where that is slower, the oldest unsent ones are dropped."""

    def __init__(self, target: int, capacity: int, device: torch.device) -> None:
        super().__init__(daemon=True)
        self.target, self.device = target, device
        self._unsent: deque[Batch] = deque(maxlen=capacity)
        self._changed = threading.Condition()
        self._closed = False

    def put(self, indices: np.ndarray, hidden: Tensor) -> None:
        with self._changed:
            self._unsent.append((indices, hidden.to(device="cpu", dtype=torch.float16)))
            self._changed.notify()

    def close(self) -> None:
        """Send what is there, then say that nothing more comes; returns when it is sent."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self.join()

    def run(self) -> None:
        _leave_the_training_alone(self.device)
        try:
            while (batch := self._next()) is not None:
                indices, hidden = batch
                self._send(torch.tensor(hidden.shape, dtype=torch.int64))
                self._send(torch.from_numpy(indices))
                self._send(hidden)
            self._send(torch.zeros(3, dtype=torch.int64))
        except RuntimeError:  # the connection is gone: that process's death is reported by who started it
            return

    def _next(self) -> Batch | None:
        with self._changed:
            self._changed.wait_for(lambda: self._unsent or self._closed)
            return self._unsent.popleft() if self._unsent else None

    def _send(self, tensor: Tensor) -> None:
        dist.send(tensor.to(self.device).contiguous(), self.target)


def _leave_the_training_alone(device: torch.device) -> None:
    """Give this thread a GPU stream of its own: nccl makes the current one wait for the other process, and training goes on."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))
