"""A packed folder as a transformers model, and back into a folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from autoquant.backbones import BACKBONES, Backbone
from autoquant.backbones.remove import resize_to
from autoquant.core.errors import CheckpointError, ModelError
from autoquant.core.files import atomic_write_bytes, disk_errors
from autoquant.pack.checkpoint import PackedFile, read_packed
from autoquant.pack.modules import PackedEmbedding, PackedLinear, check_memory
from autoquant.pack.transformers_quantizer import QUANT_METHOD

CONFIG_NAME, FILE_NAME = "config.json", "model.safetensors"
PLAUSIBLE_NUMBER = 2**16  # what any config.json may say of sizes; more only if a matrix in the file is that large
# Keys of a config.json that would make transformers look for a foreign quantizer, kernel or code.
IGNORED_KEYS = ("quantization_config", "auto_map", "attn_implementation", "_attn_implementation", "dtype", "torch_dtype")


def load_packed(folder: str | Path, memory: str = "unpacked", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The transformers classifier of a packed folder (config.json and model.safetensors): eval mode, frozen.

    `memory`: `unpacked` keeps the weights in `dtype` from their first use on, `packed` unpacks them at every use. Raises
    ModelError for a folder without these files, of an unknown model type or of settings that build no model, and
    CheckpointError for a file that is corrupt or not that of its config.json.
    """
    folder = Path(folder)
    check_memory(memory)
    settings = _read_config(folder)
    packed = read_packed(folder / FILE_NAME)
    model = _empty_model(settings, BACKBONES[settings["model_type"]], packed, folder, dtype)
    put_modules(model, packed, memory, folder)
    put_tensors(model, packed)
    return model


def put_modules(model: PreTrainedModel, packed: PackedFile, memory: str, folder: Path) -> None:
    """Replace the layers of a plain model whose matrices are packed. Raises CheckpointError if the file is not this model's."""
    backbone = BACKBONES[model.config.model_type]
    shapes: dict[str, Sequence[int]] = {name: (matrix.rows, matrix.columns) for name, matrix in packed.matrices.items()}
    resize_to(model, backbone, shapes)  # heads and FFN blocks that were removed
    matrices = backbone.matrices(model.config, shapes)
    quantised = [m.name.removesuffix(".weight") for m in matrices if m.kind in backbone.dynamic_activations]
    static = packed.settings.get("activations") == "static"
    _check_shapes(model, packed, folder, quantised if static else [])
    for matrix in matrices:
        path = matrix.name.removesuffix(".weight")
        activation_bits = packed.settings["activation_bits"] if path in quantised else 32
        _replace(model, path, packed, activation_bits, static and path in quantised, memory)


def put_tensors(model: PreTrainedModel, packed: PackedFile) -> None:
    """Fill a model with packed layers: every tensor in the dtype and on the device of its place, the CPU where it has none.

    The model gets copies, so that what was read stays what `save_packed` compares with, and writes.
    """
    state = {}
    for name, place in model.state_dict().items():
        state[name] = packed.tensors[name].to("cpu" if place.is_meta else place.device, place.dtype, copy=True)
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False).eval()
    vars(model)["packed_file"] = packed
    vars(model)["save_pretrained"] = partial(save_packed, model)  # push_to_hub calls it too


def set_activation_bits(model: PreTrainedModel, bits: int) -> None:
    """Simulate dynamic activations of 8 bits, or none (32), in a packed model, whatever it was made for; in place.

    Learned ranges stay as they are.
    """
    packed: PackedFile = vars(model)["packed_file"]
    if packed.settings.get("activations") == "static":
        return
    backbone = BACKBONES[model.config.model_type]
    shapes: dict[str, Sequence[int]] = {name: (matrix.rows, matrix.columns) for name, matrix in packed.matrices.items()}
    for matrix in backbone.matrices(model.config, shapes):
        if matrix.kind in backbone.dynamic_activations:
            cast("PackedLinear", model.get_submodule(matrix.name.removesuffix(".weight"))).activation_bits = bits


def save_packed(model: PreTrainedModel, save_directory: str | Path, push_to_hub: bool = False, **options: Any) -> None:
    """`save_pretrained` of a packed model: its config.json, and the file it came from to the byte, whatever its dtype now is.

    Takes the options of `push_to_hub` beside it; those of the plain `save_pretrained` that cut or replace the weights mean
    nothing here. Raises CheckpointError if weights were changed since loading, RunError when the disk is full or not writable.
    """
    packed: PackedFile = vars(model)["packed_file"]
    for name, tensor in model.state_dict().items():
        stored = packed.tensors[name].to(tensor.device, tensor.dtype)
        if not torch.equal(stored, tensor):
            raise CheckpointError(f"{name} was changed after loading, and a packed file is not written anew: search again.")
    folder = Path(save_directory)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.quantization_config = {"quant_method": QUANT_METHOD, **packed.recipe}
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
    atomic_write_bytes(folder / FILE_NAME, packed.to_bytes())
    if push_to_hub:
        model.push_to_hub(options.pop("repo_id", folder.name), **options)


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


def _empty_model(
    settings: dict[str, Any], backbone: Backbone, packed: PackedFile, folder: Path, dtype: torch.dtype
) -> PreTrainedModel:
    """The model of a config.json with its parameters on the meta device: nothing is initialised only to be replaced."""
    _check_numbers(settings, packed, folder)
    try:
        config = AutoConfig.for_model(**{key: value for key, value in settings.items() if key not in IGNORED_KEYS})
        last = backbone.layer.format(config.num_hidden_layers - 1)
        if not any(name.startswith(f"{last}.") for name in packed.matrices):
            raise CheckpointError(f"{folder}: config.json has {config.num_hidden_layers} layers, {FILE_NAME} lacks the last.")
        with init_empty_weights(include_buffers=False):
            return AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises many kinds for settings that make no model
        raise ModelError(f"{folder / CONFIG_NAME} makes no model: {' '.join(str(error).split())[:200]}") from error


def _check_numbers(settings: dict[str, Any], packed: PackedFile, folder: Path) -> None:
    """Refuse sizes that nothing in the file has, before transformers fills memory with buffers and label names for them."""
    most = max(PLAUSIBLE_NUMBER, *(max(matrix.rows, matrix.columns) for matrix in packed.matrices.values()))
    for name, value in settings.items():
        if isinstance(value, int) and value > most:
            raise CheckpointError(f"{folder}: {name} is {value} in config.json and nothing in {FILE_NAME} is larger than {most}.")


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


def _replace(model: nn.Module, path: str, packed: PackedFile, activation_bits: int, static: bool, memory: str) -> None:
    module, matrix = model.get_submodule(path), packed.matrices[f"{path}.weight"]
    options: dict[str, Any] = {"memory": memory, "dtype": cast("nn.Parameter", module.weight).dtype}
    if isinstance(module, nn.Embedding):
        model.set_submodule(path, PackedEmbedding(matrix, packed.quantizer, **options))
    else:
        bias = cast("nn.Parameter | None", module.bias)
        model.set_submodule(path, PackedLinear(matrix, bias, packed.quantizer, activation_bits, static, **options))
