"""Packed folders of every architecture, with random bits and, where asked for, dead heads and neurons."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from architectures import tiny
from autoquant.backbones import BACKBONES
from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import ByteModel
from autoquant.core.space import parse_space
from autoquant.core.subgroup import Partition
from autoquant.pack.checkpoint import metadata_text, write_packed
from autoquant.pack.model import load_packed, set_activation_bits
from autoquant.quantizers import QUANTIZERS

ALL, KEPT = [0, 1, 2, 3, 4, 8], [1, 2, 3, 4, 8]
SPACE = {
    "default": {"bits": ALL, "groups": "heads"},
    "ffn_in": {"bits": ALL, "groups": "rows"},
    "classifier": {"bits": [8], "groups": 1},
    "word_embedding": {"bits": KEPT, "groups": 16},
    "position_embedding": {"bits": KEPT, "groups": 8},
    "type_embedding": {"bits": [8], "groups": 1},
}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def bits_of(partition: Partition, draw: np.random.Generator, dead: str) -> tuple[int, ...]:
    """Random widths; `dead` says how many heads and neurons have none: none, some, or all."""
    matrix, widths = partition.matrix, [w for w in partition.widths if w]
    bits = draw.choice(widths, partition.groups)
    bits[0] = 8 if matrix.kind == "word_embedding" else bits[0]
    if matrix.kind in ("value", "ffn_in") and dead != "none":
        bits[:: 2 if dead == "some" else 1] = 0
    if matrix.kind in ("attention_output", "ffn_out"):
        bits[1] = 0  # a pruned row that stays
    return tuple(int(width) for width in bits)


def packed_folder(
    folder: Path,
    model_type: str = "bert",
    scale: str = "row",
    dead: str = "some",
    activation_bits: int = 8,
    outputs: int = 2,
    seed: int = 0,
    static: bool = False,
    quantizer: str = "midrise",
) -> Path:
    """A folder as `pack` writes it, without a tokenizer."""
    model: Any = tiny(model_type, outputs)
    draw, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in state:
        if name.endswith("bias"):  # zeros in a fresh model, which would hide whether they are folded
            state[name] = 0.2 * torch.randn(state[name].shape, generator=generator)
    matrices = BACKBONES[model_type].matrices(model.config, {name: tuple(t.shape) for name, t in state.items()})
    space = parse_space({**SPACE, "scale": scale}, "test")
    counts = draw.integers(0, 50, model.config.vocab_size)
    partitions = space.partition(matrices, model.config.num_attention_heads, counts)
    known = (0, *QUANTIZERS[quantizer].widths)
    partitions = tuple(replace(p, widths=tuple(b for b in p.widths if b in known)) for p in partitions)
    allocation = BitAllocation({p.matrix.name: bits_of(p, draw, dead) for p in partitions})
    settings = {"quantizer": quantizer, "scale": scale, "activation_bits": activation_bits, "max_length": 32}
    if static:
        settings["activations"] = "static"
        learned = [m.name for m in matrices if m.kind in BACKBONES[model_type].dynamic_activations]
        state |= {f"{name.removesuffix('.weight')}.input_range": input_range(generator) for name in learned}
    quantised = {p.matrix.name for p in partitions}
    rest = {name: tuple(t.shape) for name, t in state.items() if name not in quantised}
    byte_model = ByteModel(partitions, rest, scale, metadata_text(settings))
    sizes = {p.matrix.name: p.matrix.rows if scale == "row" else p.groups for p in partitions}
    scales = {name: (0.02 + 0.04 * torch.rand(size, generator=generator)).half().float() for name, size in sizes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(model.config.to_json_string(use_diff=False))
    config |= {"quantization_config": {"quant_method": "autoquant", **settings}}
    (folder / "config.json").write_text(json.dumps(config))
    write_packed(folder / "model.safetensors", state, scales, allocation, byte_model, QUANTIZERS[quantizer], settings)
    return folder


def input_range(generator: torch.Generator) -> torch.Tensor:
    """Step and offset of 4 bits for values around 0, exact in float16."""
    step = 0.2 + 0.1 * torch.rand(1, generator=generator)
    return torch.cat([step, -7.3 * step]).half().float()


def random_batch(batch: int, tokens: int, seed: int = 0, padding: int = 1) -> dict[str, np.ndarray]:
    """Every input a model may take; all texts but the first are padded, with `padding` as their last ids."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(5, 200, (batch, tokens))
    mask = np.ones_like(ids)
    for row in range(1, batch):
        mask[row, max(3, tokens - 2 * row) :] = 0
    ids[mask == 0] = padding
    types = np.zeros_like(ids)
    types[:, tokens // 2 :] = 1
    return dict(zip(INPUTS, (ids, mask, types), strict=True))


@torch.no_grad()
def simulated(folder: Path, batch: dict[str, np.ndarray], activation_bits: int) -> np.ndarray:
    """Logits of the packed folder in torch, with dynamic activations quantised or not."""
    model = load_packed(folder)
    set_activation_bits(model, activation_bits)
    inputs = BACKBONES[model.config.model_type].inputs
    return model(**{name: torch.from_numpy(batch[name]) for name in inputs}).logits.numpy()
