"""What every refiner promises: the loss falls, the bits stay, and an interruption changes nothing."""

import copy
import dataclasses
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from autoquant.core.progress import SilentProgress
from autoquant.refine import REFINERS
from autoquant.training.batches import BatchOrder
from autoquant.training.evaluate import predict_logits

RECONSTRUCTIONS = ("mrem-s", "mrem-p", "layer-wise")
IN_PROCESS = [name for name in REFINERS if name != "mrem-p"]  # that one starts processes: tests/refine/test_mrem_parallel.py
COUNT = {"layer-wise": 12}  # steps, for each of 14 layers
# what the mean loss must fall below: one layer by itself has little to gain where rows are pruned, nor have few weights, nor a
# network of which little is quantised; labels are learnt more slowly than a teacher, and where they take its place the last
# losses are not of the terms of the first
FALL = {"layer-wise": 1.0, "prequant": 1.0, "quant-noise": 1.0, "finetune": 0.9, "annealed": math.inf}
# to the teacher's logits, of which labels know nothing
CLOSER = {"prequant": 1.0, "quant-noise": 1.0, "finetune": math.inf, "annealed": math.inf}
RATES = {"prequant": {"learning_rate": 2e-2}}  # an outlier has far to go to another code
LEARN = ("dense.mixed.weight", "dense.mixed.log_scale", "dense.bias", "LayerNorm.weight")
LEARNS = {"layer-wise": LEARN[:3], "prequant": LEARN[:1]}  # norms are in no linear layer; only outliers
every_refiner = pytest.mark.parametrize("name", IN_PROCESS)


def distance(bench: Any, supernet: Any) -> float:
    """Mean squared difference of the logits from the teacher's, over all texts."""
    logits = [predict_logits(model, bench.data) for model in (supernet, bench.teacher)]
    return float(np.square(logits[0] - logits[1]).mean())


@every_refiner
def test_the_loss_falls_and_the_model_comes_closer_to_the_teacher(name: str, bench: Any) -> None:
    supernet = bench.supernet()
    before = distance(bench, supernet)
    with bench.open_context() as context:
        log = bench.refine(name, supernet, context, mrem_steps=COUNT.get(name, 30), **RATES.get(name, {}))
    for module in {line.get("module", 0) for line in log}:
        losses = [line["loss"] for line in log if line.get("module", 0) == module]
        assert len(losses) == COUNT.get(name, 30)
        assert np.mean(losses[-5:]) < FALL.get(name, 0.8) * np.mean(losses[:5])
    assert distance(bench, supernet) < CLOSER.get(name, 0.8) * before
    assert not supernet.training


@every_refiner
def test_bits_stay(name: str, bench: Any) -> None:
    supernet = bench.supernet()
    with bench.open_context() as context:
        bench.refine(name, supernet, context, steps=4, mrem_steps=2)
    simulated = supernet.materialize(copy.deepcopy(bench.teacher))
    for partition in supernet.table.partitions:
        weight = simulated.get_parameter(partition.matrix.name).data
        for row, width in zip(weight, bench.allocation.row_bits(partition), strict=True):
            assert len(row.unique()) <= 2**width, partition.matrix.name
    fresh = bench.supernet()
    assert torch.equal(supernet.width_logits, fresh.width_logits)
    assert torch.equal(supernet.gate_logits, fresh.gate_logits)


@every_refiner
def test_what_should_learn_does_and_nothing_else(name: str, bench: Any) -> None:
    supernet, before = bench.supernet(), bench.supernet().state_dict()
    with bench.open_context() as context:
        bench.refine(name, supernet, context, steps=4, mrem_steps=4)
    after = supernet.state_dict()
    for layer in (0, 1):
        prefix = f"model.bert.encoder.layer.{layer}.output"
        for part in LEARN:
            changed = not torch.equal(after[f"{prefix}.{part}"], before[f"{prefix}.{part}"])
            assert changed == (part in LEARNS.get(name, LEARN)), part


@every_refiner
def test_the_teacher_stays(name: str, bench: Any) -> None:
    before = {key: tensor.clone() for key, tensor in bench.teacher.state_dict().items()}
    with bench.open_context() as context:
        bench.refine(name, bench.supernet(), context, steps=3, mrem_steps=2)
    assert all(torch.equal(tensor, before[key]) for key, tensor in bench.teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in bench.teacher.parameters())


@every_refiner
def test_no_batch_comes_twice_in_an_epoch(name: str, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = BatchOrder.indices, []

    def watching(self: BatchOrder, step: int) -> np.ndarray:
        seen.append(real(self, step))
        return seen[-1]

    monkeypatch.setattr(BatchOrder, "indices", watching)
    with bench.open_context() as context:
        bench.refine(name, bench.supernet(), context, steps=20, mrem_steps=20, mrem_modules=1)
    seen = seen[:20]  # of the first layer, where there is one after the other
    assert len(seen) == 20
    assert len(np.unique(np.concatenate(seen))) == 20 * 16 == len(bench.data)


class InterruptingProgress(SilentProgress):
    """Presses Ctrl-C when the bar has advanced `after` times."""

    def __init__(self, title: str, after: int) -> None:
        self.title, self.left = title, after

    @contextmanager
    def stage(self, title: str, total: int, start: int = 0) -> Iterator[Any]:  # type: ignore[override]
        yield self if title.startswith(self.title) else SilentProgress()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


@every_refiner
@pytest.mark.parametrize("after", [3, 6])  # of 8 steps; the second half is module two of MREM
def test_an_interrupted_recovery_is_the_same_recovery(name: str, after: int, bench: Any) -> None:
    numbers = {"steps": 8, "mrem_steps": 4}
    supernets = [bench.supernet() for _ in range(3)]
    with bench.open_context("whole") as context:
        whole = bench.refine(name, supernets[0], context, **numbers)
    with bench.open_context() as context:
        progress = InterruptingProgress("Reconstruct" if name in RECONSTRUCTIONS else "Recover", after)
        with pytest.raises(KeyboardInterrupt):
            bench.refine(name, supernets[1], dataclasses.replace(context, progress=progress), **numbers)
    with bench.open_context() as context:
        assert len(context.run.read_log()) == after
        resumed = bench.refine(name, supernets[2], context, **numbers)
    assert resumed == whole
    for key, tensor in supernets[0].state_dict().items():
        assert torch.equal(supernets[2].state_dict()[key], tensor), key


@every_refiner
def test_the_same_seed_gives_the_same_weights(name: str, bench: Any) -> None:
    states = []
    for run in ("first", "second"):
        supernet = bench.supernet()
        with bench.open_context(run) as context:
            bench.refine(name, supernet, context, steps=3, mrem_steps=2)
        states.append(supernet.state_dict())
    assert all(torch.equal(states[1][key], tensor) for key, tensor in states[0].items())
