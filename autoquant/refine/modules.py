"""Where is the network cut, and how does one piece run alone? Modules of consecutive transformer layers (MREM, section 3.1)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn

from autoquant.quantizers.activation import StaticRange
from autoquant.supernet.layers import MixedPrecisionLinear
from autoquant.supernet.mixed import MixedWeight


def cut(sizes: Sequence[int], modules: int) -> list[tuple[int, int]]:
    """Half-open layer ranges of at most `modules` modules, as even in size as can be (smallest sum of squares).

    `sizes`: parameters of every layer, embeddings counted in the first and the head in the last.

    >>> cut([1, 1, 1, 1, 1, 1], 4)
    [(0, 1), (1, 2), (2, 4), (4, 6)]
    >>> cut([9, 2, 2, 2, 2, 2], 3)
    [(0, 1), (1, 3), (3, 6)]
    """

    @cache
    def best(first: int, left: int) -> tuple[float, tuple[int, ...]]:
        """Cost and ends of the best cut of the layers from `first` on into `left` modules."""
        if left == 1:
            return float(sum(sizes[first:])) ** 2, (len(sizes),)
        options = []
        for end in range(first + 1, len(sizes) - left + 2):
            cost, ends = best(end, left - 1)
            options.append((float(sum(sizes[first:end])) ** 2 + cost, (end, *ends)))
        return min(options)

    _, ends = best(0, min(modules, len(sizes)))
    return list(zip((0, *ends[:-1]), ends, strict=True))


def layer_sizes(model: nn.Module, layers_path: str) -> list[int]:
    """Parameters of every layer; what comes before the layers counts in the first, what comes after in the last."""
    layers: Any = model.get_submodule(layers_path)
    embeddings: Any = model.base_model
    sizes = [_size(layer) for layer in layers]
    before = _size(embeddings.embeddings)
    after = _size(model) - before - sum(sizes)
    return [size + before * (i == 0) + after * (i == len(sizes) - 1) for i, size in enumerate(sizes)]


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class _Given(nn.Module):
    """Stands where the embeddings were: hands on the hidden states that a module is given."""

    hidden: Tensor

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.hidden


class Module(nn.Module):
    """Layers `first` to `last` of a transformers classifier; the first module has the embeddings, the last one pooler and head.

    It shares every layer with the model it is cut from, so what is trained here is trained there.
    """

    def __init__(self, model: nn.Module, layers_path: str, first: int, last: int) -> None:
        super().__init__()
        layers: Any = model.get_submodule(layers_path)
        base: Any = model.base_model
        self.first, self.last, self.is_last = first, last, last == len(layers)
        kept: dict[int, Any] = {id(child): child for child in [*model.children(), *base.children()] if child is not base}
        holders = {id(m) for path, m in model.named_modules() if layers_path.startswith(path)}
        kept = {key: child for key, child in kept.items() if key not in holders}
        if not self.is_last:  # nothing after the layers
            kept = dict.fromkeys(kept)
        kept[id(base.embeddings)] = _Given() if first else base.embeddings
        kept[id(layers)] = nn.ModuleList(list(layers)[first:last])
        # a copy of the modules that hold others, and of nothing that is learned
        self.model: Any = copy.deepcopy(model, kept)

    def forward(self, batch: dict[str, Tensor], hidden: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Hidden states after the last layer [batch, tokens, width], and the last module's logits.

        `hidden`: those that come in, None for the first module, which reads the batch.
        """
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        if hidden is not None:
            self.model.base_model.embeddings.hidden = hidden
        if not self.is_last:
            return self.model.base_model(**inputs)[0], None
        seen: list[Tensor] = []
        handle = self.model.base_model.register_forward_hook(lambda _, __, output: seen.append(output[0]))
        try:
            logits = self.model(**inputs).logits
        finally:
            handle.remove()
        return seen[0], logits

    def scale_parameters(self) -> list[nn.Parameter]:
        """Scales of weights, steps and offsets of activations."""
        scales = [p for m in self.modules() if isinstance(m, MixedWeight) for p in m.quantiser_parameters()]
        return scales + [p for m in self.modules() if isinstance(m, StaticRange) for p in m.parameters()]

    def weight_parameters(self) -> list[nn.Parameter]:
        """Everything else."""
        scales = {id(p) for p in self.scale_parameters()}
        return [p for p in self.parameters() if id(p) not in scales]

    def drop_quantisation(self, probability: float) -> None:
        """QDrop: how likely an element of a layer's input stays as it is while training; 0 ends it."""
        for module in self.modules():
            if isinstance(module, MixedPrecisionLinear):
                module.drop = probability


def cut_model(model: nn.Module, layers_path: str, modules: int) -> list[Module]:
    """A model in at most `modules` modules, in order."""
    return [Module(model, layers_path, *ends) for ends in cut(layer_sizes(model, layers_path), modules)]
