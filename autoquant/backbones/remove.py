"""A transformers model without some of its heads and FFN blocks: really smaller matrices, biases folded exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoquant.backbones.base import Backbone
from autoquant.core.structure import COLUMN_KIND, GATED_KIND, ROW_KINDS, Unit

KINDS = tuple(ROW_KINDS)


def constant_input(model: nn.Module, backbone: Backbone, layer: int, kind: str) -> Tensor:
    """What the units of a layer still give the next matrix once their own weights are zero, [columns of that matrix].

    Attention weights sum to one, so a head without value weights passes on its value bias; an FFN neuron the activation of its
    bias.
    """
    from transformers.activations import ACT2FN

    rows = _linear(model, backbone, layer, GATED_KIND[kind])
    bias = rows.bias.detach() if rows.bias is not None else rows.weight.new_zeros(len(rows.weight))
    if kind == "head":
        return bias
    config: Any = model.config
    name = config.hidden_act if hasattr(config, "hidden_act") else config.activation
    activated: Tensor = (ACT2FN[name] if isinstance(name, str) else name)(bias)
    return activated


@torch.no_grad()
def remove_units(model: nn.Module, backbone: Backbone, units: Sequence[Unit]) -> nn.Module:
    """Remove `units` in place; returns `model`. What they add with their value (or first FFN) weights at zero is folded into
    the next matrix's bias, so the result computes exactly what the model computes with those weights at zero.
    """
    for layer in sorted({unit.layer for unit in units}):
        for kind in KINDS:
            gone = [unit for unit in units if (unit.layer, unit.kind) == (layer, kind)]
            if gone:
                _remove(model, backbone, layer, kind, gone)
    return model


def _remove(model: nn.Module, backbone: Backbone, layer: int, kind: str, units: Sequence[Unit]) -> None:
    after = _linear(model, backbone, layer, COLUMN_KIND[kind])
    keep = torch.ones(after.in_features, dtype=torch.bool, device=after.weight.device)
    for unit in units:
        keep[unit.start : unit.stop] = False
    constant = constant_input(model, backbone, layer, kind)
    bias = after.weight[:, ~keep] @ constant[~keep]
    if after.bias is not None:
        bias = bias + after.bias
    for row_kind in ROW_KINDS[kind]:
        linear = _linear(model, backbone, layer, row_kind)
        _set(model, backbone, layer, row_kind, linear.weight[keep], None if linear.bias is None else linear.bias[keep])
    _set(model, backbone, layer, COLUMN_KIND[kind], after.weight[:, keep], bias)


def resize_to(model: nn.Module, backbone: Backbone, shapes: Mapping[str, Sequence[int]]) -> nn.Module:
    """Give a model's layers the widths that their matrices have in `shapes` (names -> [rows, columns]); returns `model`.

    New parameters are uninitialised, on the old ones' device. A width that no removal of units leads to is left alone: whoever
    compares shapes afterwards finds it.
    """
    config: Any = model.config
    step = {"head": config.hidden_size // config.num_attention_heads, "ffn": 1}
    layers: Any = model.get_submodule(backbone.layers)
    for kind in KINDS:
        for layer in range(len(layers)):
            width = shapes.get(f"{_path(backbone, layer, GATED_KIND[kind])}.weight", [0])[0]
            if 0 < width < _linear(model, backbone, layer, GATED_KIND[kind]).out_features and width % step[kind] == 0:
                _resize(model, backbone, layer, kind, width)
    return model


def _resize(model: nn.Module, backbone: Backbone, layer: int, kind: str, width: int) -> None:
    for row_kind in ROW_KINDS[kind]:
        old = _linear(model, backbone, layer, row_kind)
        bias = None if old.bias is None else old.bias.new_empty(width)
        _set(model, backbone, layer, row_kind, old.weight.new_empty(width, old.in_features), bias)
    after = _linear(model, backbone, layer, COLUMN_KIND[kind])
    _set(model, backbone, layer, COLUMN_KIND[kind], after.weight.new_empty(after.out_features, width), after.bias)


def _path(backbone: Backbone, layer: int, kind: str) -> str:
    return f"{backbone.layer.format(layer)}.{backbone.layer_modules[kind]}"


def _linear(model: nn.Module, backbone: Backbone, layer: int, kind: str) -> Any:
    return model.get_submodule(_path(backbone, layer, kind))


def _set(model: nn.Module, backbone: Backbone, layer: int, kind: str, weight: Tensor, bias: Tensor | None) -> None:
    linear = _linear(model, backbone, layer, kind)
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.detach().clone())
    linear.bias = None if bias is None else nn.Parameter(bias.detach().clone())

