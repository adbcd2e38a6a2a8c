"""Where quantisation starts: input second moments per linear layer, then a searched scale per row and bit-width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from autoquant.core.cost import ChoiceTable
from autoquant.core.structure import Unit, kept_rows
from autoquant.core.subgroup import Partition
from autoquant.quantizers import CodebookQuantizer, MinMax, Quantizer
from autoquant.training.batches import Encoded


def input_moments(model: nn.Module, names: list[str], data: Encoded, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Sum of x x^T over real tokens, per text, at the input of every linear layer in `names` (of matrices): [in, in] float32."""
    moments: dict[str, Tensor] = {}

    def record(name: str, x: Tensor) -> None:
        moments[name] = moments.get(name, torch.zeros((), device=x.device)) + x.T @ x / len(data)

    _see_inputs(model, names, data, device, record)
    return moments


def input_ranges(
    model: nn.Module, names: list[str], data: Encoded, device: torch.device | str = "cpu"
) -> dict[str, tuple[float, float]]:
    """Mean of |x| and smallest x over real tokens at the input of every linear layer in `names` (of matrices)."""
    sizes: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}

    def record(name: str, x: Tensor) -> None:
        sizes[name].append((float(x.abs().double().sum()), float(x.numel()), float(x.min())))

    _see_inputs(model, names, data, device, record)
    columns = {name: list(zip(*batches, strict=True)) for name, batches in sizes.items()}
    return {name: (sum(total) / sum(count), min(least)) for name, (total, count, least) in columns.items()}


@torch.no_grad()
def _see_inputs(
    model: nn.Module, names: list[str], data: Encoded, device: torch.device | str, record: Callable[[str, Tensor], None]
) -> None:
    """Call `record(name, x)` with the input of every linear layer in `names` for every batch: x [real tokens, in]."""
    mask = torch.empty(0)

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: record(name, inputs[0][mask.bool()] if inputs[0].dim() == 3 else inputs[0])

    modules = {name: model.get_submodule(name.removesuffix(".weight")) for name in names}
    handles = [m.register_forward_pre_hook(hook(name)) for name, m in modules.items() if isinstance(m, nn.Linear)]
    for indices in data.by_length(32):
        batch = data.collate(indices, device)
        batch.pop("labels")
        mask = batch["attention_mask"]
        model(**batch)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def initial_scales(
    model: nn.Module, table: ChoiceTable, quantizer: Quantizer, moments: Mapping[str, Tensor], per_row: bool
) -> dict[str, Tensor]:
    """A scale per row (or sub-group) and non-zero width of the table: matrix name -> [rows or groups, K] float32.

    Every scale is one that float16 holds; that of a sub-group is the mean over its rows. An asymmetric
    quantizer's, [rows or groups, K, 2], is the range of the row or sub-group. A codebook quantizer has codebooks instead,
    [groups, numbers of all widths], of the widths that the sub-groups may have.
    """
    widths = [w for w in table.widths if w]
    result = {}
    for partition in table.partitions:
        name = partition.matrix.name
        weight = model.get_parameter(name).detach()
        grouped = partition.scale_or("row" if per_row else "subgroup") == "subgroup"
        group = torch.from_numpy(partition.group_of_row).to(weight.device) if grouped else None
        if isinstance(quantizer, MinMax):
            result[name] = quantizer.measure(weight, widths, group).cpu()
            continue
        if isinstance(quantizer, CodebookQuantizer):
            every = torch.from_numpy(partition.group_of_row).to(weight.device)
            result[name] = quantizer.measure(weight, widths, every, partition.widths).cpu()
            continue
        moment = moments.get(name)
        if moment is not None:
            moment = moment / moment.diagonal().mean() + 0.01 * torch.eye(len(moment), device=moment.device)
        columns = [quantizer.initial_scale(weight, width, moment) for width in widths]
        scale = torch.stack(columns, dim=1)
        if group is not None:
            total = torch.zeros(partition.groups, len(widths), device=scale.device).index_add_(0, group, scale)
            scale = (total / torch.tensor(partition.sizes, device=scale.device)[:, None]).half().float()
        result[name] = scale.cpu()
    return result


def kept_scales(scales: Tensor, partition: Partition, pruned: Partition, removed: Sequence[Unit]) -> Tensor:
    """Scales of a matrix, [rows or groups, K], for the smaller one without `removed`; that of a sub-group is its rows' mean."""
    if pruned is partition:
        return scales
    kept = torch.from_numpy(kept_rows(partition.matrix, removed))
    if len(scales) == partition.matrix.rows:
        return scales[kept]
    per_row = scales[torch.from_numpy(partition.group_of_row)[kept]]
    total = torch.zeros(pruned.groups, *scales.shape[1:]).index_add_(0, torch.from_numpy(pruned.group_of_row), per_row)
    sizes = torch.tensor(pruned.sizes).view(-1, *[1] * (scales.dim() - 1))
    return (total / sizes).half().float()
