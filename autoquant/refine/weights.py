"""What do matrices multiply with while a refiner trains? Quantised weights, unless the refiner puts others in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from autoquant.supernet.build import Supernet

Replace = Callable[[str, Tensor, Tensor, Tensor | None], Tensor]
"""Matrix name; its quantised and its latent weight [rows, columns]; which rows these are, None for all -> what to use."""


@contextmanager
def replaced_weights(supernet: Supernet, replace: Replace) -> Iterator[None]:
    """Forward passes use what `replace` makes of every matrix."""
    handles = [mixed.register_forward_hook(_hook(name, replace)) for name, mixed in supernet.mixed_weights()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, replace: Replace) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def hook(mixed: Any, inputs: tuple[Any, ...], quantised: Tensor) -> Tensor:
        rows = inputs[0] if inputs else None  # an embedding asks for those of the batch
        latent = mixed.weight if rows is None else functional.embedding(rows, mixed.weight)
        return replace(name, quantised, latent, rows)

    return hook
