"""Module-wise reconstruction error minimisation, sequential (MREM-S; Bai et al. 2022).

The network is cut into modules of consecutive transformer layers. For each in turn: minimise || f_hat_n - f_n ||^2 between the
quantised and the full-precision module's output over the module's weights and scales. Its input anneals from the teacher's to
the quantised network's own (teacher forcing, eq. 5.11-5.12). No labels are read.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoquant.core.schedule import teacher_forcing, warmup_linear
from autoquant.core.subgroup import even_sizes
from autoquant.refine.base import RefineProblem
from autoquant.supernet.build import Supernet
from autoquant.training.batches import BatchOrder
from autoquant.training.distillation import hidden_loss
from autoquant.training.loop import Stateful, run_steps


def module_boundaries(layers: int, modules: int) -> list[tuple[int, int]]:
    """Half-open layer ranges of `modules` modules, as even as can be.

    >>> module_boundaries(6, 4)
    [(0, 2), (2, 4), (4, 5), (5, 6)]
    """
    ends = list(itertools.accumulate(even_sizes(layers, modules)))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def encoder_layers(supernet: Supernet) -> Any:
    """The transformer layers of a supernet's model, a ModuleList."""
    return supernet.model.get_submodule(supernet.layers_path)


class LayerRange:
    """Runs some consecutive encoder layers of a supernet by replacing a layer's input with a forward pre-hook."""

    def __init__(self, supernet: Supernet, first: int, last: int) -> None:
        self.supernet, self.first, self.last = supernet, first, last
        self.layers = encoder_layers(supernet)

    def parameters(self) -> list[nn.Parameter]:
        """Weights and scales of the layers, and of the embeddings for the first range."""
        modules: list[nn.Module] = list(self.layers[self.first : self.last])
        if self.first == 0:
            base: Any = self.supernet.model.base_model
            modules.append(base.embeddings)
        return [p for module in modules for p in module.parameters()]

    def output(self, batch: dict[str, Tensor], teacher_input: Tensor, teacher_share: float) -> Tensor:
        """Hidden states after the last layer [batch, tokens, width]; no gradient reaches layers before the first."""
        student_input = self._prefix(batch, self.first) if self.first and teacher_share < 1 else teacher_input
        mixed = teacher_share * teacher_input + (1 - teacher_share) * student_input
        return self._run(batch, mixed if self.first else None)

    @torch.no_grad()
    def _prefix(self, batch: dict[str, Tensor], layer: int) -> Tensor:
        return self._stop_after(batch, layer - 1)

    def _run(self, batch: dict[str, Tensor], replaced: Tensor | None) -> Tensor:
        if replaced is None:
            return self._stop_after(batch, self.last - 1)
        handle = self.layers[self.first].register_forward_pre_hook(lambda _, inputs: (replaced, *inputs[1:]))
        try:
            return self._stop_after(batch, self.last - 1, skip_before=self.first)
        finally:
            handle.remove()

    def _stop_after(self, batch: dict[str, Tensor], layer: int, skip_before: int = 0) -> Tensor:
        """The hidden state after `layer`; earlier layers than `skip_before` are passed over."""
        kept: list[Tensor] = []

        def stop(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            kept.append(output)
            raise _StopForwardError

        handles = [self.layers[layer].register_forward_hook(stop)]
        saved = {i: self.layers[i].forward for i in range(skip_before)}
        for i in saved:
            self.layers[i].forward = lambda hidden, *_, **__: hidden
        try:
            self.supernet(**{k: v for k, v in batch.items() if k != "labels"})
        except _StopForwardError:
            pass
        finally:
            for i in saved:
                del self.layers[i].forward
            for handle in handles:
                handle.remove()
        return kept[0]


class _StopForwardError(Exception):
    """Ends a forward pass once the wanted hidden state is there."""


@dataclass(frozen=True)
class SequentialMrem:
    """MREM-S: modules one after the other, earlier ones frozen."""

    def refine(self, problem: RefineProblem) -> None:
        supernet, settings, context = problem.supernet, problem.settings, problem.context
        data = problem.outputs.data
        ranges = module_boundaries(len(encoder_layers(supernet)), settings.mrem_modules)
        modules = [LayerRange(supernet, first, last) for first, last in ranges]
        steps, rate = settings.mrem_steps, settings.mrem_learning_rate
        order = BatchOrder(data, settings.batch_size, context.seed)
        optimizers = [torch.optim.AdamW(m.parameters(), lr=rate, weight_decay=0.0, fused=True) for m in modules]

        def step(number: int) -> dict[str, float]:
            turn, local = divmod(number, steps)
            module, optimizer = modules[turn], optimizers[turn]
            optimizer.param_groups[0]["lr"] = rate * warmup_linear(local, steps)
            indices = order.indices(local)
            batch, target = data.collate(indices, context.device), problem.outputs.batch(indices)
            with context.autocast():
                output = module.output(batch, target.hidden[module.first], teacher_forcing(local, max(1, steps // 2)))
            loss = hidden_loss((output,), target.hidden[module.last][None], batch["attention_mask"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return {"loss": loss.item(), "module": turn}

        supernet.eval()
        state: dict[str, Stateful] = {"model": supernet.model}
        state |= {f"optimizer{i}": optimizer for i, optimizer in enumerate(optimizers)}
        run_steps(context, problem.stage, "Reconstruct", len(modules) * steps, step, state)
