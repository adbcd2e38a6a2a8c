"""A tiny teacher, its outputs, and supernets frozen at two bits or so."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification, BertTokenizerFast

from autoquant.backbones import BACKBONES
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import ByteModel, choice_table
from autoquant.core.progress import SilentProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import DistillationSettings, RecoverySettings
from autoquant.core.space import load_space
from autoquant.quantizers import QUANTIZERS
from autoquant.refine import REFINERS, RefineProblem
from autoquant.supernet.build import Supernet
from autoquant.supernet.calibration import initial_scales
from autoquant.supernet.mixing import KERNELS
from autoquant.tasks.load import load_glue
from autoquant.training.batches import Encoded, encode
from autoquant.training.distillation import TeacherOutputs
from autoquant.training.loop import Context


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KERNELS, "compile", False)


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """What recovery starts from."""

    teacher: BertForSequenceClassification
    data: Encoded
    frozen: Supernet
    allocation: BitAllocation
    open_context: Callable[..., AbstractContextManager[Context]]

    def supernet(self) -> Supernet:
        """A fresh one, frozen."""
        supernet = copy.deepcopy(self.frozen)
        supernet.freeze(self.allocation)
        return supernet

    def refine(self, name: str, supernet: Supernet, context: Context, **settings: Any) -> list[dict[str, Any]]:
        """Run a refiner on the supernet; returns the whole log of its stage."""
        problem = self.problem(name, supernet, context, **settings)
        REFINERS[name].refine(problem)
        lines = [line for line in context.run.read_log() if line["stage"].startswith(f"{name}-ours")]
        return sorted(lines, key=lambda line: line.get("module", 0))  # the parallel ones interleave

    def problem(self, name: str, supernet: Supernet, context: Context, **settings: Any) -> RefineProblem:
        """What a refiner is given, with few steps and fast ones."""
        numbers = {"steps": 30, "batch_size": 16, "learning_rate": 2e-3, "mrem_steps": 30, "mrem_modules": 2, **settings}
        rates = {"mrem_learning_rate": 2e-3, "mrem_scale_learning_rate": 2e-3, "parallel_fill": 4}
        recovery, stage = RecoverySettings(**{**rates, **numbers}), f"{name}-ours"
        distillation = DistillationSettings(logits=1.0, hidden=1.0)

        def outputs() -> TeacherOutputs:
            return TeacherOutputs(self.teacher, self.data, context)

        return RefineProblem(supernet, self.teacher, self.data, outputs, recovery, distillation, context, stage)


@pytest.fixture
def bench(tiny_classifier: BertForSequenceClassification, tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> Bench:
    teacher = copy.deepcopy(tiny_classifier)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(8.0 if parameter.dim() == 2 else 1.0)
    data = encode(BertTokenizerFast.from_pretrained(tiny_classifier_dir), load_glue("sst2", tiny_data).train, 32)
    cut = [12 - index % 5 for index in range(len(data))]  # texts of different lengths
    ids, types = (tuple(a[:n] for a, n in zip(arrays, cut, strict=True)) for arrays in (data.ids, data.types))
    data = dataclasses.replace(data, ids=ids, types=types)
    shapes: Any = {name: tuple(tensor.shape) for name, tensor in teacher.state_dict().items()}
    matrices = BACKBONES["bert"].matrices(teacher.config, shapes)
    partitions = load_space("heads").partition(matrices, 4, data.token_counts(200))
    table = choice_table(ByteModel(partitions, {}, "row", "{}"))
    scales = initial_scales(teacher, table, QUANTIZERS["midrise"], {}, per_row=True)
    supernet = Supernet(teacher, BACKBONES["bert"], table, QUANTIZERS["midrise"], scales, 8)
    draw = np.random.default_rng(0)
    widths = {p.matrix.name: [w for w in p.widths if w < 4] or [8] for p in partitions}
    bits = {p.matrix.name: tuple(int(b) for b in draw.choice(widths[p.matrix.name], p.groups)) for p in partitions}

    @contextmanager
    def open_context(name: str = "run", **changes: Any) -> Iterator[Context]:
        with RunDirectory.open(tmp_path / name, {}, resume=True) as run:
            yield Context(run, SilentProgress(), torch.device("cpu"), seed=0, **changes)

    return Bench(teacher, data, supernet, BitAllocation(bits), open_context)
