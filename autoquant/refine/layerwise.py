"""Layer-wise reconstruction, the baseline of MREM: one linear layer at a time learns to give the full-precision layer's output.

Layers in their order: the input is the quantised network's own, the target what the teacher's layer makes of the teacher's.
Embeddings, which have no input, keep their rounded weights. No labels are read. It knows neither teacher forcing nor QDrop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoquant.core.errors import RunError
from autoquant.core.schedule import warmup_linear
from autoquant.refine.base import RefineProblem
from autoquant.refine.modules import Module
from autoquant.refine.mrem import SMALL
from autoquant.refine.states import HiddenStates, calibration_texts
from autoquant.supernet.layers import MixedPrecisionLinear
from autoquant.training.batches import BatchOrder, Encoded
from autoquant.training.loop import Stateful, run_steps


class LayerSequence:
    """The linear layer under way: its inputs and targets over all texts, kept while it learns, and its optimizer."""

    def __init__(self, problem: RefineProblem) -> None:
        self.problem, settings, seed = problem, problem.settings, problem.context.seed
        problem.supernet.eval()
        model, path = problem.supernet.model, problem.supernet.layers_path
        samples = min(settings.mrem_samples, settings.mrem_steps * settings.batch_size)
        self.data = calibration_texts(problem.data, samples, seed)
        self.order = BatchOrder(self.data, settings.batch_size, seed)
        count = len(list(model.get_submodule(path).children()))
        self.pairs = [(Module(model, path, i, i + 1), Module(problem.teacher, path, i, i + 1)) for i in range(count)]
        if any(_shapes(student) != _shapes(teacher) for student, teacher in self.pairs):
            raise RunError("Layer-wise reconstruction needs every head and FFN block in place: choose mrem-s.")
        self.names = [
            (index, name)
            for index, (student, _) in enumerate(self.pairs)
            for name, module in student.named_modules()
            if isinstance(module, MixedPrecisionLinear)
        ]
        self.turn, self.at = -1, 0
        self.inputs: tuple[HiddenStates | None, HiddenStates | None] = (None, None)

    def begin(self, turn: int) -> None:
        """Go on to linear layer `turn`: collect what comes in and what should come out."""
        self.turn, (index, name) = turn, self.names[turn]
        while self.at < index:  # past a transformer layer: its outputs are the next one's inputs
            modules = self.pairs[self.at]
            made = [self._record(m, i, None) for m, i in zip(modules, self.inputs, strict=True)]
            self.inputs, self.at = (made[0], made[1]), self.at + 1
        student, teacher = self.pairs[index]
        self.layer: Any = student.get_submodule(name)
        self.source = self._record(student, self.inputs[0], self.layer, of_input=True)
        self.target = self._record(teacher, self.inputs[1], teacher.get_submodule(name))
        rates = self._rates
        scales = [p for p in self.problem.supernet.scale_parameters() if any(p is q for q in self.layer.parameters())]
        weights = [p for p in self.layer.parameters() if all(p is not s for s in scales)]
        groups = [{"params": weights, "lr": rates[0]}, {"params": scales, "lr": rates[1], "eps": SMALL}]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)

    @property
    def _rates(self) -> tuple[float, float]:
        return self.problem.settings.mrem_learning_rate, self.problem.settings.mrem_scale_learning_rate

    @torch.no_grad()
    def _record(
        self, module: Module, inputs: HiddenStates | None, layer: nn.Module | None, of_input: bool = False
    ) -> HiddenStates:
        """The output of a module, or what goes into or comes out of a layer in it, for every text."""
        lengths, device = [len(ids) for ids in self.data.ids], self.problem.context.device
        made: HiddenStates | None = None
        for indices in self.data.by_length(64):
            hidden = None if inputs is None else inputs.batch(indices, device)
            value = _value(module, self.data.collate(indices, device), hidden, layer, of_input)
            if value.dim() == 2:  # the pooler and what follows it see one vector a text
                value = value[:, None].expand(-1, max(lengths[i] for i in indices), -1)
            made = made or HiddenStates(lengths, value.shape[-1])
            made.put(indices, value)
        assert made is not None
        return made

    def step(self, number: int) -> dict[str, float]:
        turn, local = divmod(number, self.problem.settings.mrem_steps)
        if turn != self.turn:
            self.begin(turn)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * warmup_linear(local, self.problem.settings.mrem_steps)
        indices, device = self.order.indices(local), self.problem.context.device
        real = _mask(self.data, indices, device)
        with self.problem.context.autocast():
            output = self.layer(self.source.batch(indices, device)[real])
        loss = functional.mse_loss(output.float(), self.target.batch(indices, device)[real])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": loss.item(), "module": turn}

    def state_dict(self) -> dict[str, Any]:
        return {"turn": self.turn, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin(state["turn"])
        self.optimizer.load_state_dict(state["optimizer"])


class _Reached(Exception):  # noqa: N818 - nothing went wrong
    """Ends a forward pass where its value is known: what comes after would be computed for nothing."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def _value(module: Module, batch: dict[str, Tensor], hidden: Tensor | None, layer: nn.Module | None, of_input: bool) -> Tensor:
    """Of one batch: a module's output, or a layer's input or output."""

    def entering(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    def leaving(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        raise _Reached(output)

    if layer is None:
        return module(batch, hidden)[0]
    handle = layer.register_forward_pre_hook(entering) if of_input else layer.register_forward_hook(leaving)
    try:
        module(batch, hidden)
    except _Reached as reached:
        return reached.value
    finally:
        handle.remove()
    raise AssertionError("the layer is not in the module's forward pass")


def _shapes(module: Module) -> list[tuple[int, int]]:
    """Widths of the linear layers."""
    return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear | MixedPrecisionLinear)]


def _mask(data: Encoded, indices: np.ndarray, device: torch.device) -> Tensor:
    """Which tokens are real, [batch, longest] bool."""
    return data.collate(indices, device)["attention_mask"].bool()


@dataclass(frozen=True)
class LayerWise:
    """One linear layer at a time."""

    def refine(self, problem: RefineProblem) -> None:
        sequence = LayerSequence(problem)
        steps = len(sequence.names) * problem.settings.mrem_steps
        state: dict[str, Stateful] = {"model": problem.supernet.model, "sequence": sequence}
        run_steps(problem.context, problem.stage, "Reconstruct", steps, sequence.step, state)
