"""The description of an architecture: names only, no code of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoquant.core.subgroup import Matrix


@dataclass(frozen=True)
class Backbone:
    """Module paths of one architecture's sequence classifier.

    `layer` is the path of an encoder layer with `{}` for its index; the dictionaries map kinds (core.space.KINDS) to
    module paths, within a layer or within the model. The kind `pooler` is the dense layer between encoder and classifier,
    wherever an architecture keeps it.
    """

    layer: str
    layer_modules: dict[str, str]
    outer_modules: dict[str, str]
    embedding_modules: dict[str, str]
    embedding_norm: str
    """Module path of the normalisation after the embeddings."""
    layer_norms: dict[str, str]
    """`attention_norm` and `ffn_norm`: module paths within a layer of the normalisation after each half."""
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    """What the model takes of a tokenizer's output."""
    positions_after_padding: bool = False
    """Whether positions count from the padding token's id + 1 on, so that the rows before the first are never a token's."""
    pooler_activation: str = "tanh"
    """What follows the pooler."""
    dynamic_activations: tuple[str, ...] = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out", "pooler")
    """Kinds whose inputs a fast runtime quantises to 8 bits."""

    @property
    def layers(self) -> str:
        """Path of the list of encoder layers."""
        return self.layer.removesuffix(".{}")

    def first_position(self, config: Any) -> int:
        """Row of the position embedding that belongs to a text's first token."""
        return config.pad_token_id + 1 if self.positions_after_padding else 0

    def matrices(self, config: Any, shapes: dict[str, Sequence[int]]) -> tuple[Matrix, ...]:
        """Every matrix of the search space, embeddings first; `shapes` maps state-dict names to shapes."""
        found = [self._matrix(kind, path, None, shapes) for kind, path in self.embedding_modules.items()]
        for index in range(config.num_hidden_layers):
            prefix = self.layer.format(index)
            found += [self._matrix(kind, f"{prefix}.{path}", index, shapes) for kind, path in self.layer_modules.items()]
        found += [self._matrix(kind, path, None, shapes) for kind, path in self.outer_modules.items()]
        return tuple(matrix for matrix in found if matrix is not None)

    @staticmethod
    def _matrix(kind: str, path: str, layer: int | None, shapes: dict[str, Sequence[int]]) -> Matrix | None:
        shape = shapes.get(f"{path}.weight")
        return None if shape is None else Matrix(f"{path}.weight", int(shape[0]), int(shape[1]), kind, layer)
