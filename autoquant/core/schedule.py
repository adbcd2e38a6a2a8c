"""How does a scalar anneal? Pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable


def exponential(step: int, start: float, end: float, begin: int, total: int) -> float:
    """AQ-BERT's annealing (eq. 12): t0 exp(-eta (step - N0)), eta set so that `end` is reached at `total`.

    Holds `start` until step `begin` (N0) and `end` from `total` on.
    """
    if step <= begin or total <= begin:
        return start
    eta = math.log(start / end) / (total - begin)
    return max(end, start * math.exp(-eta * (step - begin)))


def linear(step: int, start: float, end: float, begin: int, total: int) -> float:
    """A straight line from `start` at step `begin` to `end` at step `total`."""
    if total <= begin:
        return start
    done = min(max((step - begin) / (total - begin), 0.0), 1.0)
    return start + (end - start) * done


def cosine(step: int, start: float, end: float, begin: int, total: int) -> float:
    """Half a cosine from `start` at step `begin` to `end` at step `total`."""
    if total <= begin:
        return start
    done = min(max((step - begin) / (total - begin), 0.0), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


SCHEDULES: dict[str, Callable[[int, float, float, int, int], float]] = {
    "exponential": exponential,
    "linear": linear,
    "cosine": cosine,
}


def warmup_linear(step: int, total: int, warmup: float = 0.1) -> float:
    """Learning-rate factor: linear rise over the first `warmup` share of the steps, then linear fall to 0 at `total`."""
    rise = max(1, round(total * warmup))
    return (step + 1) / rise if step < rise else max(0.0, (total - step) / max(1, total - rise))


def teacher_forcing(step: int, steps: int) -> float:
    """MREM's linear annealing of the teacher's share of a module's input (5.12): max(1 - t / T0, 0)."""
    return max(1.0 - step / steps, 0.0) if steps else 0.0
