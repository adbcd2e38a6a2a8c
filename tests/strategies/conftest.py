"""A tiny problem: a classifier with calibrated scales and sensitivities, texts of different lengths, and any budget."""

import copy
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

from autoquant.blueprint import Blueprint
from autoquant.core.cost import SizeBudget
from autoquant.core.progress import SilentProgress
from autoquant.core.run import RunDirectory
from autoquant.core.settings import Recipe, SearchSettings
from autoquant.machine import Machine
from autoquant.strategies import Problem
from autoquant.supernet.mixing import KERNELS
from autoquant.tasks.data import TaskData, TextData
from autoquant.tasks.load import load_glue
from autoquant.workspace import Workspace

STEPS = 6
SHORT: dict[str, Any] = {
    "hessian_slices": 2,
    "hessian_samples": 8,
    "power_iterations": 2,
    "trace_vectors": 3,
    "trials": 4,
    "trial_samples": 16,
    "race_steps": 2,
}


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KERNELS, "compile", False)


@pytest.fixture(scope="session")
def make_workspace(
    tiny_classifier: BertForSequenceClassification,
    tiny_classifier_dir: Path,
    tiny_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Workspace]]:
    """`make_workspace(space)`: the tiny classifier, its weights large enough for logits to depend on the text, as teacher."""
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
    with ExitStack() as stack:

        @cache
        def make(space: str) -> Workspace:
            recipe = Recipe(
                space, activation_bits=32, search=SearchSettings(steps=STEPS, batch_size=8, calibration_samples=48, **SHORT)
            )
            blueprint = Blueprint.draw(str(root / "model"), data, recipe, 32, trim_positions=False)
            run = stack.enter_context(RunDirectory.open(root / f"run-{space}", {}))
            return Workspace(blueprint, run, SilentProgress(), Machine("cpu", compile=False), seed=0)

        yield make


@pytest.fixture
def workspace(make_workspace: Callable[[str], Workspace]) -> Workspace:
    """In the default space."""
    return make_workspace("default")


@pytest.fixture
def make_problem(workspace: Workspace, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`make_problem(share, seed, **search)`: a budget `share` of the way from the smallest to the largest file; a fresh run."""
    with RunDirectory.open(tmp_path / "run", {}) as run:
        yield partial(draw_problem, workspace, run)


@pytest.fixture
def make_structured(make_workspace: Callable[[str], Workspace], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """The same where heads and FFN blocks can be removed."""
    with RunDirectory.open(tmp_path / "structured", {}) as run:
        yield partial(draw_problem, make_workspace("structured"), run)


def draw_problem(
    workspace: Workspace, run: RunDirectory, share: float = 0.4, seed: int = 0, stage: str = "search", **search: Any
) -> Problem:
    table = workspace.blueprint.table(SizeBudget(workspace.blueprint.full_bytes() - 1))
    budget = SizeBudget(int(table.smallest() + share * (table.largest() - table.smallest())))
    problem = workspace.problem(budget, stage)
    context = dataclasses.replace(problem.context, run=run, seed=seed)
    return dataclasses.replace(problem, search=dataclasses.replace(problem.search, **search), context=context)
