"""Module-wise reconstruction error minimisation (MREM; Bai et al. 2022): its step, and the sequential variant (MREM-S).

The network is cut into modules of consecutive transformer layers. For each: minimise || f_hat_n - f_n ||^2 between the
quantised and the full-precision module's output over the module's weights and its quantisation parameters. Its input anneals
from the teacher's to the quantised network's own (teacher forcing, eq. 5.11-5.12). No labels are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from autoquant.core.schedule import teacher_forcing, warmup_linear
from autoquant.core.settings import RecoverySettings
from autoquant.refine.base import RefineProblem
from autoquant.refine.modules import Module, cut_model
from autoquant.refine.states import HiddenStates, Lesson, calibration_texts, make_lessons
from autoquant.training.batches import BatchOrder
from autoquant.training.distillation import hidden_loss
from autoquant.training.loop import Context, Stateful, run_steps

CONSTANT_SHARE = 0.5  # of the teacher's states where teacher forcing does not anneal
SMALL = 1e-12  # Adam's epsilon for scales, whose gradients LSQ makes tiny


def prepare(problem: RefineProblem) -> tuple[list[Module], list[Lesson]]:
    """The modules of a problem's supernet and what each learns from."""
    settings, context, supernet = problem.settings, problem.context, problem.supernet
    supernet.eval()  # no dropout: the teacher's outputs are the target, not noise around them
    modules = cut_model(supernet.model, supernet.layers_path, settings.mrem_modules)
    samples = min(settings.mrem_samples, settings.mrem_steps * settings.batch_size)  # no more than are looked at
    data = calibration_texts(problem.data, samples, context.seed)
    ranges = [(module.first, module.last) for module in modules]
    sizes = [sum(p.numel() for p in module.parameters()) for module in modules]
    cut = [{"layers": list(ends), "parameters": size} for ends, size in zip(ranges, sizes, strict=True)]
    context.run.record(modules=cut)
    return modules, make_lessons(problem.teacher, data, ranges, context.device, context.progress)


def teacher_share(settings: RecoverySettings, step: int) -> float:
    """The teacher's share of a module's input at a step: lambda_t of eq. 5.12, zero from half of the steps on."""
    if settings.teacher_forcing == "linear":
        return teacher_forcing(step, max(1, settings.mrem_steps // 2))
    return CONSTANT_SHARE if settings.teacher_forcing == "constant" else 0.0


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The step of MREM on one module: the same whoever feeds it, and in whichever process."""

    module: Module
    lesson: Lesson
    settings: RecoverySettings
    context: Context
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        rates, module = self._rates, self.module
        scales = {"params": module.scale_parameters(), "lr": rates[1], "eps": SMALL}
        groups: list[dict[str, Any]] = [{"params": module.weight_parameters(), "lr": rates[0]}, scales]
        object.__setattr__(self, "optimizer", torch.optim.AdamW(groups, weight_decay=0.0, fused=True))

    @property
    def _rates(self) -> tuple[float, float]:
        return self.settings.mrem_learning_rate, self.settings.mrem_scale_learning_rate

    def step(self, number: int, indices: np.ndarray, student: Tensor | None) -> tuple[float, Tensor]:
        """One update on the texts `indices`; `student`: what the quantised network before this module made of them.

        Returns the loss and the module's output [batch, tokens, width].
        """
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * warmup_linear(number, self.settings.mrem_steps)
        device, lesson = self.context.device, self.lesson
        batch, hidden = lesson.data.collate(indices, device), None
        if student is not None and lesson.start is not None:
            share = teacher_share(self.settings, number)
            hidden = share * lesson.start.batch(indices, device) + (1 - share) * student
        self.module.drop_quantisation(self.settings.activation_drop)
        with self.context.autocast():
            output, logits = self.module(batch, hidden)
        self.module.drop_quantisation(0.0)
        loss = hidden_loss((output.float(),), lesson.end.batch(indices, device)[None], batch["attention_mask"])
        if logits is not None and lesson.logits is not None:
            loss = loss + functional.mse_loss(logits.float(), lesson.logits[indices].to(device))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item(), output.detach()

    @torch.no_grad()
    def output(self, indices: np.ndarray, student: Tensor | None) -> Tensor:
        """The module's output as it now is, [batch, tokens, width]."""
        with self.context.autocast():
            hidden, _ = self.module(self.lesson.data.collate(indices, self.context.device), student)
        return hidden


def outputs_of(work: Reconstruction, inputs: HiddenStates | None) -> HiddenStates:
    """What a module makes of every text, given what comes in (None for the first module)."""
    data, device = work.lesson.data, work.context.device
    made = HiddenStates([len(ids) for ids in data.ids], work.lesson.end.values.shape[1])
    for indices in data.by_length(64):
        made.put(indices, work.output(indices, None if inputs is None else inputs.batch(indices, device)))
    return made


class ModuleSequence:
    """The module under way: its optimizer, and its inputs, cached once when the modules before it are done."""

    def __init__(self, problem: RefineProblem) -> None:
        self.problem = problem
        self.modules, self.lessons = prepare(problem)
        self.order = BatchOrder(self.lessons[0].data, problem.settings.batch_size, problem.context.seed)
        self.turn = -1
        self.inputs: HiddenStates | None = None
        self.work: Reconstruction

    def begin(self, turn: int) -> None:
        """Go on to module `turn`."""
        while self.turn < turn:
            if self.turn >= 0:
                self.inputs = outputs_of(self.work, self.inputs)
            self.turn += 1
            module, lesson = self.modules[self.turn], self.lessons[self.turn]
            self.work = Reconstruction(module, lesson, self.problem.settings, self.problem.context)

    def step(self, number: int) -> dict[str, float]:
        """Step `number` of all modules' together."""
        turn, local = divmod(number, self.problem.settings.mrem_steps)
        self.begin(turn)
        indices = self.order.indices(local)
        student = None if self.inputs is None else self.inputs.batch(indices, self.problem.context.device)
        loss, _ = self.work.step(local, indices, student)
        return {"loss": loss, "module": turn}

    def state_dict(self) -> dict[str, Any]:
        return {"turn": self.turn, "optimizer": self.work.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin(state["turn"])
        self.work.optimizer.load_state_dict(state["optimizer"])


@dataclass(frozen=True)
class SequentialMrem:
    """MREM-S: modules one after the other, earlier ones frozen, so that a module's inputs are made once."""

    def refine(self, problem: RefineProblem) -> None:
        sequence = ModuleSequence(problem)
        steps = len(sequence.modules) * problem.settings.mrem_steps
        state: dict[str, Stateful] = {"model": problem.supernet.model, "sequence": sequence}
        run_steps(problem.context, problem.stage, "Reconstruct", steps, sequence.step, state)
