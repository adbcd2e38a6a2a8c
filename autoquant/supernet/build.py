"""A transformers model -> Supernet: latent weights, log-scales, and one table of architecture logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoquant.backbones import Backbone
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import ChoiceTable
from autoquant.quantizers import Quantizer
from autoquant.quantizers.activation import StaticRange, fake_quantize_dynamic, fake_quantize_static
from autoquant.supernet.layers import MixedPrecisionEmbedding, MixedPrecisionLinear, MixedWeight
from autoquant.supernet.relaxation import gumbel_gate, gumbel_softmax

RANGE_NAME = "input_range"  # step and offset of a learned range, beside the weight in the packed file


class QuantizedInputLinear(nn.Linear):
    """A linear layer whose input is quantised at run time."""

    quantise: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.quantise(x))


class Supernet(nn.Module):
    """A sequence classifier whose matrices are mixtures over bit-widths.

    `table` is the flat view of all N sub-groups; `width_logits` [N, K] is over its non-zero widths (not allowed ones are
    masked), `gate_logits` [N] decides pruning alone (sub-groups without 0 in their widths have no gate). Without `gates` 0 bits
    is one more choice of the softmax, as in AQ-BERT, and `gate_logits` are its logits.
    `scales` maps matrix name -> initial scale [rows or groups, K]; `ranges` matrix name -> mean and minimum of the layer's
    input where activations get a learned static range instead of a dynamic one.
    """

    width_mask: Tensor
    bytes: Tensor
    prunable: Tensor

    def __init__(
        self,
        model: nn.Module,
        backbone: Backbone,
        table: ChoiceTable,
        quantizer: Quantizer,
        scales: Mapping[str, Tensor],
        activation_bits: int = 32,
        per_row_scale: bool = True,
        gates: bool = True,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.table, self.quantizer, self.activation_bits, self.gates = table, quantizer, activation_bits, gates
        self.layers_path = backbone.layers
        self.widths = tuple(w for w in table.widths if w)
        allowed = torch.from_numpy(table.allowed)
        self.has_zero = table.widths[0] == 0
        self.register_buffer("width_mask", allowed[:, int(self.has_zero) :], persistent=False)
        self.register_buffer("prunable", allowed[:, 0] if self.has_zero else torch.zeros(len(table)).bool(), persistent=False)
        self.register_buffer("bytes", torch.from_numpy(table.bytes).float(), persistent=False)
        self.width_logits = nn.Parameter(torch.zeros(len(table), len(self.widths)))
        self.gate_logits = nn.Parameter(torch.full((len(table),), 2.0 if gates else 0.0))
        self._slices = table.slices()
        self._column: Tensor | None = None
        self._keep: Tensor | None = None
        for partition in table.partitions:
            per_row = partition.scale_or("row" if per_row_scale else "subgroup") == "row"
            self._replace(partition.matrix.name, partition, scales, backbone, per_row, ranges or {})

    def _replace(
        self,
        name: str,
        partition: Any,
        scales: Mapping[str, Tensor],
        backbone: Backbone,
        per_row: bool,
        ranges: Mapping[str, tuple[float, float]],
    ) -> None:
        path = name.removesuffix(".weight")
        source: Any = self.model.get_submodule(path)
        mixed = MixedWeight(source.weight, scales[name].log(), partition, self.widths, self.quantizer, per_row)
        if isinstance(source, nn.Embedding):
            layer: nn.Module = MixedPrecisionEmbedding(source, mixed)
        else:
            bits = self.activation_bits if partition.matrix.kind in backbone.dynamic_activations else 32
            static = StaticRange.starting(*ranges[name], bits) if name in ranges and bits < 32 else None
            layer = MixedPrecisionLinear(source, mixed, bits, static)
        self.model.set_submodule(path, layer)

    def mixed_weights(self) -> Iterator[tuple[str, MixedWeight]]:
        """Matrix name and its mixed weight, in the table's order."""
        for name in self._slices:
            module: Any = self.model.get_submodule(name.removesuffix(".weight"))
            yield name, module.mixed

    # Parameters ---------------------------------------------------------------------------------------------------

    def architecture_parameters(self) -> list[nn.Parameter]:
        return [self.width_logits, self.gate_logits]

    def scale_parameters(self) -> list[nn.Parameter]:
        """Scales of weights, steps and offsets of activations."""
        ranges = [p for module in self.model.modules() if isinstance(module, StaticRange) for p in module.parameters()]
        return [mixed.log_scale for _, mixed in self.mixed_weights()] + ranges

    def weight_parameters(self) -> list[nn.Parameter]:
        """Latent weights, biases and layer norms: all that is neither a scale nor a logit."""
        special = {id(p) for p in self.scale_parameters()}
        return [p for p in self.model.parameters() if id(p) not in special]

    # Choosing -----------------------------------------------------------------------------------------------------

    def _masked_widths(self) -> Tensor:
        return self.width_logits.masked_fill(~self.width_mask, -torch.inf)

    def _masked_gates(self) -> Tensor:
        return self.gate_logits.masked_fill(~self.prunable, torch.inf)

    def _masked_choices(self) -> Tensor:
        """Logits of 0 bits and of every width in one softmax, [N, 1 + K]."""
        zero = self.gate_logits.masked_fill(~self.prunable, -torch.inf)
        return torch.cat([zero[:, None], self._masked_widths()], dim=1)

    def probabilities(self) -> Tensor:
        """Probability of every choice of the table, [N, widths of the table], zero bits included."""
        if not self.gates:
            return torch.softmax(self._masked_choices(), dim=-1)[:, int(not self.has_zero) :]
        keep = torch.sigmoid(self._masked_gates())
        kept = keep[:, None] * torch.softmax(self._masked_widths(), dim=-1)
        return torch.cat([1 - keep[:, None], kept], dim=1) if self.has_zero else kept

    def log_probabilities(self) -> Tensor:
        """Their logarithms, exact however small they are; -inf where a choice is not allowed."""
        if not self.gates:
            return torch.log_softmax(self._masked_choices().double(), dim=-1)[:, int(not self.has_zero) :]
        gates = self._masked_gates()[:, None].double()
        widths = torch.log_softmax(self._masked_widths().double(), dim=-1)
        kept = functional.logsigmoid(gates) + widths
        return torch.cat([functional.logsigmoid(-gates), kept], dim=1) if self.has_zero else kept

    def expected_bytes(self) -> Tensor:
        """Bytes under the choice probabilities; at one-hot probabilities exactly the bytes of that allocation."""
        return (self.probabilities() * self.bytes).sum() + self.table.fixed

    def most_probable(self) -> np.ndarray:
        """Column of the table with the largest probability, per sub-group: [N] int64. Its bytes may exceed any budget."""
        with torch.no_grad():
            return self.probabilities().argmax(dim=1).cpu().numpy()

    def use_mixture(self, temperature: float, hard: bool) -> None:
        """Sample a relaxed choice, differentiable in the logits, for the next forward passes."""
        if self.gates:
            width = gumbel_softmax(self._masked_widths(), temperature, hard)
            share = width * gumbel_gate(self._masked_gates(), temperature, hard)[:, None]
        else:
            share = gumbel_softmax(self._masked_choices(), temperature, hard)[:, 1:]
        for name, mixed in self.mixed_weights():
            mixed.use_mixture(share[self._slices[name]])

    def use_sample(self) -> None:
        """Sample one width per sub-group, no gradient to the logits: every weight is quantised once.

        A hard sample is the same at every temperature.
        """
        with torch.no_grad():
            if self.gates:
                width = gumbel_softmax(self._masked_widths(), temperature=1.0, hard=True)
                keep = gumbel_gate(self._masked_gates(), temperature=1.0, hard=True)
            else:
                width = gumbel_softmax(self._masked_choices(), temperature=1.0, hard=True)[:, 1:]
                keep = (width.amax(dim=1) > 0.5).float()
            self._use(width.argmax(dim=1), keep)

    def freeze(self, allocation: BitAllocation) -> None:
        """Use this allocation from now on."""
        bits = torch.tensor([b for name in self._slices for b in allocation.bits[name]])
        column = torch.stack([bits == w for w in self.widths], dim=1).int().argmax(dim=1)
        self._use(column.to(self.width_logits.device), (bits > 0).float().to(self.width_logits.device))

    def _use(self, column: Tensor, keep: Tensor) -> None:
        self._column, self._keep = column, keep
        for name, mixed in self.mixed_weights():
            mixed.use_choice(column[self._slices[name]], keep[self._slices[name]])

    def values(self, nats_per_byte: float) -> np.ndarray:
        """The knapsack's values, [N, widths of the table]: log-probabilities weighted by the parameters they decide over.

        `nats_per_byte` is added back per byte so that a value is a utility before its price; the knapsack does not see the
        difference, but controls that reverse the preferences need it.
        """
        with torch.no_grad():
            logs = self.log_probabilities().cpu().numpy()
        return logs * self.table.parameters[:, None] + nats_per_byte * self.table.bytes

    # Running ------------------------------------------------------------------------------------------------------

    def forward(self, **batch: Any) -> Any:
        return self.model(**batch)

    def packed_state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Latent state dict under the original names, and the float16 scales of the frozen choice, for the packer."""
        assert self._column is not None
        scales = {n: m.chosen_scale(self._column[self._slices[n]]).cpu() for n, m in self.mixed_weights()}
        state = {}
        for name, tensor in self.model.state_dict().items():
            if not name.endswith((".mixed.log_scale", ".static.log_step", ".static.offset")):
                state[name.replace(".mixed.weight", ".weight")] = tensor.detach().cpu()
        state |= {name: mixed.stored_weight().cpu() for name, mixed in self.mixed_weights()}
        state |= {f"{path}.{RANGE_NAME}": static.stored().cpu() for path, static in self._ranges()}
        return state, scales

    def _ranges(self) -> Iterator[tuple[str, StaticRange]]:
        """Path of every linear layer whose input has a learned range, and the range."""
        for path, module in self.model.named_modules():
            if isinstance(module, MixedPrecisionLinear) and module.static is not None:
                yield path, module.static

    def materialize(self, into: nn.Module) -> nn.Module:
        """The simulated model: `into` (a plain copy of the source model) with the weights the packed file would hold.

        Matrices become their quantised values under the frozen allocation, all else is rounded to float16; linear layers
        quantise their inputs where this supernet does. Returns `into` in eval mode.
        """
        assert self._column is not None
        assert self._keep is not None
        state, scales = self.packed_state()
        ranges = {path: state.pop(f"{path}.{RANGE_NAME}") for path, _ in self._ranges()}
        values = {name: t if name in self._slices else t.half().float() for name, t in state.items()}
        for name, mixed in self.mixed_weights():
            rows = self._slices[name]
            bits = torch.tensor(self.widths)[self._column[rows].cpu()] * self._keep[rows].cpu().int()
            values[name] = quantised_values(state[name], scales[name], bits, mixed)
        into.load_state_dict(values)
        for name, _ in self.mixed_weights():
            path = name.removesuffix(".weight")
            module = self.model.get_submodule(path)
            if isinstance(module, MixedPrecisionLinear) and module.activation_bits < 32:
                plain: Any = into.get_submodule(path)
                plain.__class__, plain.quantise = QuantizedInputLinear, fake_quantize_dynamic
                if path in ranges:
                    step, offset = ranges[path].to(plain.weight.device)
                    plain.quantise = partial(fake_quantize_static, step=step, offset=offset, bits=module.activation_bits)
        return into.eval()


def quantised_values(weight: Tensor, scale: Tensor, bits: Tensor, mixed: MixedWeight) -> Tensor:
    """Values of a matrix under bits per sub-group ([groups]; 0 = zeros), [rows, columns]."""
    group = mixed.group_of_row.cpu()
    row_scale = scale if mixed.per_row else scale[group]
    row_bits, result = bits[group], torch.zeros_like(weight)
    for width in sorted({int(b) for b in bits} - {0}):
        at = row_bits == width
        result[at] = mixed.quantizer.fake_quantize(weight[at], row_scale[at], width)
    return result
