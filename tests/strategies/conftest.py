"""A tiny problem: a classifier with calibrated scales and sensitivities, texts of different lengths, and any budget."""

import copy
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

from autoquant.core.cost import SizeBudget
from autoquant.core.progress import SilentProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import Recipe, SearchSettings
from autoquant.supernet.mixing import KERNELS
from autoquant.tasks.data import TaskData, TextData
from autoquant.tasks.load import load_glue
from autoquant.workspace import Blueprint, Machine, Workspace

STEPS = 6


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KERNELS, "compile", False)


@pytest.fixture(scope="session")
def workspace(
    tiny_classifier: BertForSequenceClassification,
    tiny_classifier_dir: Path,
    tiny_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Workspace]:
    """The tiny classifier with weights large enough for its logits to depend on the text, as teacher of a short search."""
    root = tmp_path_factory.mktemp("strategies")
    model = copy.deepcopy(tiny_classifier)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.dim() == 2 else 1.0)
    shutil.copytree(tiny_classifier_dir, root / "model")
    model.save_pretrained(root / "model")
    data = load_glue("sst2", tiny_data)
    cut = tuple(" ".join(text.split()[: 10 - i % 4]) for i, text in enumerate(data.train.first))
    data = TaskData(data.task, TextData(cut, None, data.train.labels), data.evaluation, data.label_names)
    recipe = Recipe(activation_bits=32, search=SearchSettings(steps=STEPS, batch_size=8, calibration_samples=48))
    blueprint = Blueprint.draw(str(root / "model"), data, recipe, 32, trim_positions=False)
    with RunDirectory.open(root / "run", {}) as run:
        yield Workspace(blueprint, run, SilentProgress(), Machine("cpu", compile=False), seed=0)


@pytest.fixture
def make_problem(workspace: Workspace, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`make_problem(share, seed, **search)`: a budget `share` of the way from the smallest to the largest file; a fresh run."""
    table = workspace.blueprint.table(SizeBudget(workspace.blueprint.full_bytes() - 1))
    with RunDirectory.open(tmp_path / "run", {}) as run:

        def make(share: float = 0.4, seed: int = 0, stage: str = "search", **search: Any) -> Any:
            budget = SizeBudget(int(table.smallest() + share * (table.largest() - table.smallest())))
            problem = workspace.problem(budget, stage)
            settings = dataclasses.replace(problem.search, **search)
            context = dataclasses.replace(problem.context, run=run, seed=seed)
            return dataclasses.replace(problem, search=settings, context=context)

        yield make
