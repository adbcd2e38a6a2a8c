"""What happens to an allocation, whichever strategy found it? It is recovered, packed, reloaded, compared and measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from autoquant.backbones.remove import remove_units
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import SizeBudget
from autoquant.core.errors import BudgetError, CheckpointError
from autoquant.core.structure import pick_units
from autoquant.pack.checkpoint import write_packed
from autoquant.pack.model import FILE_NAME, load_packed
from autoquant.refine import REFINERS, RefineProblem
from autoquant.strategies import SearchResult
from autoquant.supernet.build import Supernet
from autoquant.tasks.metrics import score
from autoquant.training.batches import Encoded
from autoquant.training.evaluate import predict_logits
from autoquant.workspace import Workspace, save_pretrained

RELOAD_TOLERANCE = 1e-5
RELOAD_TEXTS = 256  # held-out training texts on which the reloaded file is compared with the simulated model


def build(workspace: Workspace, result: SearchResult, budget: SizeBudget, method: str, folder: Path) -> dict[str, Any]:
    """Recover, pack into `folder`, reload and compare; a finished method is read, not done again.

    Returns {"file_bytes", "counted_bytes", "reload_difference"}. Raises CheckpointError if the file is not of the predicted
    size or its logits differ from the simulated model's by more than 1e-5.
    """
    done = workspace.run.finished(f"recover-{method}")
    if done is not None:
        return done
    with workspace.timed(f"recover-{method}"):
        supernet = recover(workspace, result, method)
    with workspace.timed(f"pack-{method}"):
        path = pack(workspace, supernet, result.allocation, folder)
        difference = _reload_difference(workspace, supernet, result.allocation, folder)
    exact = workspace.blueprint.byte_model.exact_bytes(result.allocation)
    if path.stat().st_size != exact:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, {exact} were predicted: please report this.")
    if not difference <= RELOAD_TOLERANCE:  # nan is no less of a reason
        raise CheckpointError(f"The reloaded {path} differs from the simulated model by {difference:.2e}: please report this.")
    counted = workspace.blueprint.byte_model.exact_bytes(result.allocation, budget.count)
    if counted > budget.bytes:
        raise BudgetError(f"The allocation of {method} counts {counted} bytes, the budget is {budget.bytes}: raise the budget.")
    done = {"file_bytes": exact, "counted_bytes": counted, "reload_difference": difference}
    workspace.run.finish(f"recover-{method}", done)
    for refiner in REFINERS:
        workspace.run.discard_states(f"{refiner}-{method}")
    return done


def measure(workspace: Workspace, folder: Path, method: str, data: Encoded) -> dict[str, float]:
    """The task's metrics of a packed folder, reloaded; read if they were measured before."""
    done = workspace.run.finished(f"evaluate-{method}")
    if done is None:
        with workspace.timed(f"evaluate-{method}"):
            done = evaluate(workspace, load_packed(folder).to(workspace.context.device), data)
        workspace.run.finish(f"evaluate-{method}", done)
    return done


def evaluate(workspace: Workspace, model: nn.Module, data: Encoded) -> dict[str, float]:
    """The task's metrics of a model on encoded data."""
    logits = predict_logits(model, data, device=workspace.context.device)
    return score(workspace.blueprint.data.task.metrics, logits, data.labels)


def recover(workspace: Workspace, result: SearchResult, method: str) -> Supernet:
    """The recipe's training with frozen bits, then reconstruction: the same for every method. Returns the frozen supernet."""
    recipe = workspace.blueprint.recipe
    settings = recipe.recovery
    supernet = workspace.to_recover(result)
    for refiner, steps in ((settings.training, settings.steps), (settings.reconstruction, settings.mrem_steps)):
        if steps:
            stage = f"{refiner}-{method}"
            problem = RefineProblem(
                supernet,
                workspace.teacher,
                workspace.recovery_texts,
                lambda: workspace.recovery_outputs,
                settings,
                recipe.distillation,
                workspace.context,
                stage,
            )
            REFINERS[refiner].refine(problem)
    return supernet


def pack(workspace: Workspace, supernet: Supernet, allocation: BitAllocation, folder: Path) -> Path:
    """Write config, tokenizer and the packed weights into `folder`; returns the packed file."""
    blueprint = workspace.blueprint
    save_pretrained(folder, _config_to_ship(workspace), blueprint.source.tokenizer)
    state, scales = supernet.packed_state()
    settings = blueprint.packed_settings()
    return write_packed(folder / FILE_NAME, state, scales, allocation, blueprint.byte_model, blueprint.quantizer, settings)


def _config_to_ship(workspace: Workspace) -> Any:
    teacher: Any = workspace.teacher
    config = type(teacher.config).from_dict(teacher.config.to_dict())
    config.architectures = [type(teacher).__name__]
    config.quantization_config = {"quant_method": "autoquant", **workspace.blueprint.packed_settings()}
    return config


def simulated_logits(workspace: Workspace, supernet: Supernet, allocation: BitAllocation, data: Encoded) -> np.ndarray:
    """Logits of the simulated model, to hold the reloaded file against."""
    blueprint = workspace.blueprint
    plain, _ = dataclasses.replace(blueprint.source, path=str(workspace.run.teacher_dir)).load(workspace.seed)
    remove_units(plain, blueprint.source.backbone, pick_units(blueprint.byte_model.units, allocation.removed))
    model = supernet.materialize(plain).to(workspace.context.device)
    return predict_logits(model, data, device=workspace.context.device)


def _reload_difference(workspace: Workspace, supernet: Supernet, allocation: BitAllocation, folder: Path) -> float:
    """The largest difference between the logits of the reloaded file and of the simulated model."""
    data = workspace.held_out.select(np.arange(min(RELOAD_TEXTS, len(workspace.held_out))))
    reloaded = predict_logits(load_packed(folder).to(workspace.context.device), data, device=workspace.context.device)
    return float(np.abs(reloaded - simulated_logits(workspace, supernet, allocation, data)).max())
