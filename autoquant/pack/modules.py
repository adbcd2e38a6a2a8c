"""Packed matrices as modules, and a packed folder as a transformers model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from autoquant.backbones import BACKBONES, Backbone
from autoquant.core.errors import CheckpointError, ModelError
from autoquant.pack.checkpoint import PackedFile, read_packed
from autoquant.pack.matrix import Layout, PackedMatrix
from autoquant.quantizers.activation import fake_quantize_dynamic, fake_quantize_static
from autoquant.quantizers.base import Quantizer

QUANT_METHOD = "autoquant"
CONFIG_NAME, FILE_NAME = "config.json", "model.safetensors"
# Keys of a config.json that would make transformers look for a foreign quantizer, kernel or code.
IGNORED_KEYS = ("quantization_config", "auto_map", "attn_implementation", "_attn_implementation", "dtype", "torch_dtype")


class Packed(nn.Module):
    """A matrix kept as it is stored; `weight` is unpacked on first use and kept."""

    codes: Tensor
    scales: Tensor
    layout: Tensor
    buckets: Tensor | None
    unpacked: Tensor | None

    def __init__(self, matrix: PackedMatrix, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer, self.scale = quantizer, matrix.layout.scale
        self.register_buffer("codes", matrix.codes)
        self.register_buffer("scales", matrix.scales)
        self.register_buffer("layout", matrix.layout.head)
        self.register_buffer("buckets", matrix.layout.buckets)
        self.register_buffer("unpacked", None, persistent=False)

    @property
    def weight(self) -> Tensor:
        """[rows, columns] float32."""
        if self.unpacked is None:
            layout = Layout(self.layout, self.buckets, self.scale)
            self.unpacked = PackedMatrix(self.codes, self.scales, layout).dequantise(self.quantizer)
        return self.unpacked


class PackedLinear(Packed):
    """nn.Linear with a packed weight; with 8 `activation_bits` its input is quantised as fast runtimes do, 32 leaves it.

    With `static` the input is quantised to a stored range: `input_range` [2], step and offset (LSQ+).
    """

    input_range: Tensor | None

    def __init__(
        self, matrix: PackedMatrix, bias: nn.Parameter | None, quantizer: Quantizer, activation_bits: int, static: bool = False
    ) -> None:
        super().__init__(matrix, quantizer)
        self.bias, self.activation_bits = bias, activation_bits
        self.register_buffer("input_range", torch.tensor([1.0, 0.0]) if static else None)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self._quantised(x), self.weight, self.bias)

    def _quantised(self, x: Tensor) -> Tensor:
        if self.activation_bits == 32:
            return x
        if self.input_range is None:
            return fake_quantize_dynamic(x)
        step, offset = self.input_range.to(x.dtype)
        return fake_quantize_static(x, step, offset, self.activation_bits)


class PackedEmbedding(Packed):
    """nn.Embedding with a packed weight."""

    def forward(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.weight)


def load_packed(folder: str | Path) -> PreTrainedModel:
    """The transformers classifier of a packed folder (config.json and model.safetensors): float32, eval mode, frozen.

    Raises ModelError for a folder without these files, of an unknown model type or of settings that build no model, and
    CheckpointError for a file that is corrupt or not that of its config.json.
    """
    folder = Path(folder)
    settings = _read_config(folder)
    packed = read_packed(folder / FILE_NAME)
    backbone = BACKBONES[settings["model_type"]]
    model = _empty_model(settings, backbone, packed, folder)
    shapes: dict[str, Sequence[int]] = {name: (matrix.rows, matrix.columns) for name, matrix in packed.matrices.items()}
    matrices = backbone.matrices(model.config, shapes)
    quantised = [m.name.removesuffix(".weight") for m in matrices if m.kind in backbone.dynamic_activations]
    static = packed.settings.get("activations") == "static"
    _check_shapes(model, packed, folder, quantised if static else [])
    for matrix in matrices:
        path = matrix.name.removesuffix(".weight")
        activation_bits = packed.settings["activation_bits"] if path in quantised else 32
        _replace(model, path, packed, activation_bits, static and path in quantised)
    # every name and shape was compared above; the packed matrices are the ones that are not there
    model.load_state_dict({name: tensor.float() for name, tensor in packed.rest.items()}, strict=False, assign=True)
    return model.requires_grad_(False).eval()


def _read_config(folder: Path) -> dict[str, Any]:
    missing = [name for name in (CONFIG_NAME, FILE_NAME) if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} is no packed model: {' and '.join(missing)} missing.")
    path = folder / CONFIG_NAME
    try:
        settings = json.loads(path.read_text("utf-8"))
        method, model_type = settings["quantization_config"]["quant_method"], str(settings["model_type"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} is not that of a packed model: it lacks model_type or quantization_config.") from error
    if method != QUANT_METHOD:
        raise ModelError(f"{path}: quant_method is {method!r}, autoquant loads {QUANT_METHOD!r}.")
    if model_type not in BACKBONES:
        raise ModelError(f"{path}: model type {model_type!r} is unknown; known are {', '.join(sorted(BACKBONES))}.")
    return settings


def _empty_model(settings: dict[str, Any], backbone: Backbone, packed: PackedFile, folder: Path) -> PreTrainedModel:
    """The model of a config.json with its parameters on the meta device: nothing is initialised only to be replaced."""
    try:
        config = AutoConfig.for_model(**{key: value for key, value in settings.items() if key not in IGNORED_KEYS})
        last = backbone.layer.format(config.num_hidden_layers - 1)
        if not any(name.startswith(f"{last}.") for name in packed.matrices):
            raise CheckpointError(f"{folder}: config.json has {config.num_hidden_layers} layers, {FILE_NAME} lacks the last.")
        with init_empty_weights(include_buffers=False):
            return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises many kinds for settings that make no model
        raise ModelError(f"{folder / CONFIG_NAME} makes no model: {' '.join(str(error).split())[:200]}") from error


def _check_shapes(model: PreTrainedModel, packed: PackedFile, folder: Path, ranges: Sequence[str]) -> None:
    """Raise CheckpointError unless the file has exactly the tensors of the model, in their shapes; `ranges`: layers with one."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wanted |= {f"{path}.input_range": (2,) for path in ranges}
    found = {name: tuple(tensor.shape) for name, tensor in packed.rest.items()}
    found |= {name: (matrix.rows, matrix.columns) for name, matrix in packed.matrices.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"{folder}: {name} is {found.get(name, 'missing')} in {FILE_NAME} and {wanted.get(name, 'missing')} by "
                f"{CONFIG_NAME}: the two files are not of one model."
            )


def _replace(model: nn.Module, path: str, packed: PackedFile, activation_bits: int, static: bool) -> None:
    module, matrix = model.get_submodule(path), packed.matrices[f"{path}.weight"]
    if isinstance(module, nn.Embedding):
        model.set_submodule(path, PackedEmbedding(matrix, packed.quantizer))
    else:
        bias = cast("nn.Parameter | None", module.bias)
        model.set_submodule(path, PackedLinear(matrix, bias, packed.quantizer, activation_bits, static))
