"""A transformers model -> Supernet: latent weights, log-scales, and one table of architecture logits."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoquant.backbones import Backbone
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import ChoiceTable
from autoquant.core.structure import Unit
from autoquant.core.subgroup import Matrix
from autoquant.quantizers import CodebookQuantizer, MinMax, Quantizer
from autoquant.quantizers.activation import StaticRange, fake_quantize_dynamic, fake_quantize_static
from autoquant.supernet.coded import CodedWeight
from autoquant.supernet.layers import MixedPrecisionEmbedding, MixedPrecisionLinear
from autoquant.supernet.mixed import MixedWeight
from autoquant.supernet.ranged import RangedWeight
from autoquant.supernet.relaxation import gumbel_gate, gumbel_softmax
from autoquant.supernet.scaled import ScaledWeight

RANGE_NAME = "input_range"  # step and offset of a learned range, beside the weight in the packed file
QUANTISER_PARAMETERS = (".mixed.log_scale", ".mixed.codebooks", ".static.log_step", ".static.offset")
START_LOGIT = 2.0  # of a gate without a prior: kept, but not for certain


class QuantizedInputLinear(nn.Linear):
    """A linear layer whose input is quantised at run time, to the range of the tensor or to a stored one.

    `input_range` [2], step and offset, is a buffer: on a GPU, dividing by a number of the CPU's rounds otherwise.
    """

    input_range: Tensor | None
    activation_bits: int

    @classmethod
    def adopt(cls, linear: Any, activation_bits: int, input_range: Tensor | None) -> None:
        """Make a plain linear layer one of these, in place."""
        linear.__class__ = cls
        linear.activation_bits = activation_bits
        stored = None if input_range is None else input_range.to(linear.weight.device)
        linear.register_buffer("input_range", stored, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.input_range is None:
            return super().forward(fake_quantize_dynamic(x))
        step, offset = self.input_range
        return super().forward(fake_quantize_static(x, step, offset, self.activation_bits))


class Supernet(nn.Module):
    """A sequence classifier whose matrices are mixtures over bit-widths.

    `table` is the flat view of all N sub-groups; `width_logits` [N, K] is over its non-zero widths (not allowed ones are
    masked), `gate_logits` [N] decides pruning alone (sub-groups without 0 in their widths have no gate). Without `gates` 0 bits
    is one more choice of the softmax, as in AQ-BERT, and `gate_logits` are its logits. Where the table has units that can be
    removed as a whole, `unit_logits` [U] decide that: a unit's gate acts on its value or first FFN rows, which leaves of it the
    constant that removal folds away, and on the bytes of all its rows and columns.
    `scales` maps matrix name -> what `initial_scales` found; `ranges` matrix name -> mean and minimum of the layer's
    input where activations get a learned static range instead of a dynamic one.
    """

    width_mask: Tensor
    bytes: Tensor
    prunable: Tensor
    unit_of_row: Tensor  # of every row with a gate, matrix after matrix
    unit_rows: Tensor
    unit_columns: Tensor
    scale_bytes: Tensor
    unit_bytes: Tensor
    _column: Tensor | None  # what is used: buffers, so that they move with the model
    _keep: Tensor | None
    _gone: Tensor | None

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
        self.gate_logits = nn.Parameter(torch.full((len(table),), START_LOGIT if gates else 0.0))
        self._add_units(table)
        self._slices = table.slices()
        self.register_buffer("_column", None, persistent=False)
        self.register_buffer("_keep", None, persistent=False)
        self.register_buffer("_gone", None, persistent=False)
        for partition in table.partitions:
            per_row = partition.scale_or("row" if per_row_scale else "subgroup") == "row"
            self._replace(partition.matrix.name, partition, scales, backbone, per_row, ranges or {})

    def _add_units(self, table: ChoiceTable) -> None:
        self.unit_logits: nn.Parameter | None = None
        if table.removable is None:
            return
        structure = table.removable.structure
        self.unit_logits = nn.Parameter(torch.full((len(structure.units),), START_LOGIT))
        buffers = {"unit_rows": structure.rows, "unit_columns": structure.columns}
        buffers |= {"scale_bytes": table.removable.scale_bytes, "unit_bytes": table.removable.unit_bytes}
        for name, array in buffers.items():
            self.register_buffer(name, torch.from_numpy(array).float(), persistent=False)
        found = {p.matrix.name: _unit_of_row(p.matrix, structure.units) for p in table.partitions}
        gated = {name: unit for name, unit in found.items() if unit is not None}
        ends = np.cumsum([len(unit) for unit in gated.values()])
        self._gated_rows = {name: slice(int(end) - len(gated[name]), int(end)) for name, end in zip(gated, ends, strict=True)}
        self.register_buffer("unit_of_row", torch.cat(list(gated.values())), persistent=False)

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
        if isinstance(self.quantizer, MinMax):
            mixed: MixedWeight = RangedWeight(source.weight, partition, self.widths, self.quantizer, per_row)
        elif isinstance(self.quantizer, CodebookQuantizer):
            mixed = CodedWeight(source.weight, scales[name], partition, self.widths, self.quantizer)
        else:
            mixed = ScaledWeight(source.weight, scales[name].log(), partition, self.widths, self.quantizer, per_row)
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
        logits = [self.width_logits, self.gate_logits]
        return logits if self.unit_logits is None else [*logits, self.unit_logits]

    def scale_parameters(self) -> list[nn.Parameter]:
        """Scales of weights, steps and offsets of activations."""
        ranges = [p for module in self.model.modules() if isinstance(module, StaticRange) for p in module.parameters()]
        return [p for _, mixed in self.mixed_weights() for p in mixed.quantiser_parameters()] + ranges

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
        """Bytes under the choice probabilities; at one-hot probabilities exactly the bytes of that allocation.

        (With units removed the header is a few bytes shorter than this says.)
        """
        shares = self.probabilities()
        if self.unit_logits is None:
            return (shares * self.bytes).sum() + self.table.fixed
        gone = torch.sigmoid(-self.unit_logits)
        scales = (shares * self.scale_bytes).sum(dim=1)
        codes = (shares * self.bytes).sum(dim=1) - scales
        kept = (codes * (1 - self.unit_columns @ gone) + scales) * (1 - self.unit_rows @ gone)
        return kept.sum() + self.table.fixed - self.unit_bytes @ gone

    def most_probable(self) -> tuple[np.ndarray, np.ndarray]:
        """Column of the table with the largest probability per sub-group, [N] int64, and units more likely removed than not,
        [U] bool. Their bytes may exceed any budget.
        """
        with torch.no_grad():
            choice = self.probabilities().argmax(dim=1).cpu().numpy()
        removal = self.removal_values()
        if removal is None or self.table.removable is None:
            return choice, np.zeros(0, dtype=bool)
        return choice, self.table.removable.structure.spare_one(removal > 0, removal)

    def sampled(self) -> tuple[np.ndarray, np.ndarray]:
        """The last hard sample: column of the table per sub-group, [N] int64, and the units that were gone, [U] bool."""
        assert self._column is not None
        assert self._keep is not None
        column = self._column + int(self.has_zero)
        choice = torch.where(self._keep > 0.5, column, 0).cpu().numpy()
        return choice, np.zeros(0, dtype=bool) if self._gone is None else self._gone.cpu().numpy()

    def use_mixture(self, temperature: float, hard: bool) -> None:
        """Sample a relaxed choice, differentiable in the logits, for the next forward passes."""
        if self.gates:
            width = gumbel_softmax(self._masked_widths(), temperature, hard)
            share = width * gumbel_gate(self._masked_gates(), temperature, hard)[:, None]
        else:
            share = gumbel_softmax(self._masked_choices(), temperature, hard)[:, 1:]
        row_keep = self._sample_units(temperature, hard)
        for name, mixed in self.mixed_weights():
            mixed.use_mixture(share[self._slices[name]], row_keep.get(name))

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
            self._use(width.argmax(dim=1), keep, self._sample_units(temperature=1.0, hard=True))

    def _sample_units(self, temperature: float, hard: bool) -> dict[str, Tensor]:
        """Sampled gates of whole units by row, [rows] for every matrix that they act on."""
        if self.unit_logits is None:
            return {}
        gates = gumbel_gate(self.unit_logits, temperature, hard)
        self._gone = gates.detach() < 0.5
        by_row = gates[self.unit_of_row]
        return {name: by_row[rows] for name, rows in self._gated_rows.items()}

    def freeze(self, allocation: BitAllocation) -> None:
        """Use this allocation from now on. Units it removes are gone from this supernet's model already."""
        bits = torch.tensor([b for name in self._slices for b in allocation.bits[name]])
        column = torch.stack([bits == w for w in self.widths], dim=1).int().argmax(dim=1)
        self._use(column.to(self.width_logits.device), (bits > 0).float().to(self.width_logits.device))

    def _use(self, column: Tensor, keep: Tensor, row_keep: Mapping[str, Tensor] | None = None) -> None:
        self._column, self._keep = column, keep
        for name, mixed in self.mixed_weights():
            mixed.use_choice(column[self._slices[name]], keep[self._slices[name]], (row_keep or {}).get(name))

    def values(self, nats_per_byte: float) -> np.ndarray:
        """The knapsack's values, [N, widths of the table]: log-probabilities weighted by the parameters they decide over.

        `nats_per_byte` is added back per byte so that a value is a utility before its price; the knapsack does not see the
        difference, but controls that reverse the preferences need it.
        """
        with torch.no_grad():
            logs = self.log_probabilities().cpu().numpy()
        return logs * self.table.parameters[:, None] + nats_per_byte * self.table.bytes

    def removal_values(self) -> np.ndarray | None:
        """What removing each unit is worth, [U], in the measure of `values`: its log-odds weighted by its parameters."""
        if self.unit_logits is None or self.table.removable is None:
            return None
        log_odds = -self.unit_logits.detach().double().cpu().numpy()
        return log_odds * unit_parameters(self.table)

    # Running ------------------------------------------------------------------------------------------------------

    def forward(self, **batch: Any) -> Any:
        return self.model(**batch)

    def packed_state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Latent state dict under the original names, and the float16 scales of the frozen choice, for the packer."""
        assert self._column is not None
        scales = {n: m.chosen_scale(self._column[self._slices[n]]).cpu() for n, m in self.mixed_weights()}
        state = self.latent_state()
        state |= {name: mixed.stored_weight().cpu() for name, mixed in self.mixed_weights()}
        state |= {f"{path}.{RANGE_NAME}": static.stored().cpu() for path, static in self._ranges()}
        return state, scales

    def latent_state(self) -> dict[str, Tensor]:
        """The unquantised weights under the source model's names, on the CPU."""
        state = self.model.state_dict()
        latent = {name: tensor for name, tensor in state.items() if not name.endswith(QUANTISER_PARAMETERS)}
        return {name.replace(".mixed.weight", ".weight"): tensor.detach().cpu() for name, tensor in latent.items()}

    def learned_scales(self) -> dict[str, Tensor]:
        """Matrix name -> scales of every width, [rows or groups, K], on the CPU: a later supernet can start from them."""
        return {name: mixed.scales().cpu() for name, mixed in self.mixed_weights()}

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
            values[name] = mixed.packed_values(state[name], scales[name], bits)
        into.load_state_dict(values)
        for name, _ in self.mixed_weights():
            path = name.removesuffix(".weight")
            module = self.model.get_submodule(path)
            if isinstance(module, MixedPrecisionLinear) and module.activation_bits < 32:
                QuantizedInputLinear.adopt(into.get_submodule(path), module.activation_bits, ranges.get(path))
        return into.eval()


def unit_parameters(table: ChoiceTable) -> np.ndarray:
    """Weights that go with each unit, [U]."""
    assert table.removable is not None
    structure = table.removable.structure
    return (structure.rows + structure.columns).T @ table.parameters


def _unit_of_row(matrix: Matrix, units: Sequence[Unit]) -> Tensor | None:
    """The unit whose gate acts on each row, [rows] int64; None for a matrix without gates."""
    index = torch.full((matrix.rows,), -1)
    for number, unit in enumerate(units):
        if unit.is_gated_by(matrix):
            index[unit.start : unit.stop] = number
    return index if bool((index >= 0).all()) else None
