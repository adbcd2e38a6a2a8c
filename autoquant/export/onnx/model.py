"""What is the model? Its matrices, biases and norms under the names of one encoder, whatever the architecture calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoquant.backbones import BACKBONES, Backbone
from autoquant.core.errors import ModelError
from autoquant.export.onnx.weights import Coded, Matrix
from autoquant.pack.checkpoint import read_packed
from autoquant.pack.model import FILE_NAME, load_packed
from autoquant.quantizers import CodebookQuantizer


@dataclass(frozen=True)
class InputRange:
    """A learned range of a layer's input (LSQ+): codes 0 to `top` stand for code * step + offset."""

    step: float
    offset: float
    top: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The nearest of these values."""
        return np.clip(np.round((x - self.offset) / self.step), 0, self.top) * self.step + self.offset


@dataclass(frozen=True, eq=False)
class Linear:
    """A matrix [rows, columns] with its bias [rows].

    `dynamic`: whether a fast runtime quantises its input to 8 bits; `range`: that of its input, if one was learned.
    """

    weights: Matrix
    bias: np.ndarray
    dynamic: bool
    range: InputRange | None = None


@dataclass(frozen=True, eq=False)
class Norm:
    """A layer normalisation: weight and bias [hidden]."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True, eq=False)
class Layer:
    """One transformer layer, normalised after each half; any number of heads and of neurons, none included."""

    query: Linear
    key: Linear
    value: Linear
    attention_output: Linear
    attention_norm: Norm
    ffn_in: Linear
    ffn_out: Linear
    ffn_norm: Norm


@dataclass(frozen=True, eq=False)
class Classifier:
    """A BERT-like sequence classifier.

    `types` is None where the architecture has no token types; `padding` is the id of the padding token where positions are
    counted over what is not padding (else None).
    """

    words: Matrix
    positions: Matrix
    types: Matrix | None
    embedding_norm: Norm
    layers: tuple[Layer, ...]
    pooler: Linear
    classifier: Linear
    head_size: int
    epsilon: float
    activation: str
    pooler_activation: str
    padding: int | None
    inputs: tuple[str, ...]


def read_folder(folder: Path) -> tuple[Classifier, dict[str, Any]]:
    """The model of a packed folder, and what its packed file says of itself (as `pack.checkpoint.metadata_text` has it).

    Raises ModelError for codes that are not symmetric integers within int8, and whatever loading the folder raises.
    """
    config = load_packed(folder).config  # reads and compares config.json and model.safetensors
    packed = read_packed(folder / FILE_NAME)
    quantizer = packed.quantizer
    if isinstance(quantizer, CodebookQuantizer) or not quantizer.symmetric_int8:
        raise ModelError(
            f"{folder}: the codes of quantizer '{quantizer.name}' are not symmetric integers within int8 with a scale "
            "per row, which integer products need: search with --quantizer midrise."
        )
    matrices = {name: Coded.of(matrix, quantizer) for name, matrix in packed.matrices.items()}
    rest = {name: tensor.float().numpy() for name, tensor in packed.rest.items()}
    top = 2 ** packed.settings["activation_bits"] - 1
    return read_classifier(BACKBONES[config.model_type], config, matrices, rest, top), packed.settings


def read_classifier(
    backbone: Backbone, config: Any, matrices: Mapping[str, Matrix], rest: Mapping[str, np.ndarray], top: int = 255
) -> Classifier:
    """Take a model from its tensors by state-dict name; `rest` are the others, float32; `top` the largest activation code."""

    def linear(kind: str, path: str) -> Linear:
        learned = rest.get(f"{path}.input_range")
        input_range = None if learned is None else InputRange(float(learned[0]), float(learned[1]), top)
        return Linear(matrices[f"{path}.weight"], rest[f"{path}.bias"], kind in backbone.dynamic_activations, input_range)

    def norm(path: str) -> Norm:
        return Norm(rest[f"{path}.weight"], rest[f"{path}.bias"])

    tables = {kind: matrices[f"{path}.weight"] for kind, path in backbone.embedding_modules.items()}
    layers = [_layer(backbone, backbone.layer.format(index), linear, norm) for index in range(config.num_hidden_layers)]
    return Classifier(
        words=tables["word_embedding"],
        positions=tables["position_embedding"],
        types=tables.get("type_embedding"),
        embedding_norm=norm(backbone.embedding_norm),
        layers=tuple(layers),
        pooler=linear("pooler", backbone.outer_modules["pooler"]),
        classifier=linear("classifier", backbone.outer_modules["classifier"]),
        head_size=config.hidden_size // config.num_attention_heads,
        epsilon=getattr(config, "layer_norm_eps", 1e-12),  # DistilBERT's is fixed
        activation=getattr(config, "hidden_act", None) or config.activation,
        pooler_activation=backbone.pooler_activation,
        padding=config.pad_token_id if backbone.positions_after_padding else None,
        inputs=backbone.inputs,
    )


def _layer(backbone: Backbone, prefix: str, linear: Callable[[str, str], Linear], norm: Callable[[str], Norm]) -> Layer:
    parts: dict[str, Any] = {kind: linear(kind, f"{prefix}.{path}") for kind, path in backbone.layer_modules.items()}
    parts |= {kind: norm(f"{prefix}.{path}") for kind, path in backbone.layer_norms.items()}
    return Layer(**parts)
