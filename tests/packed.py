"""Packed files and folders for tests, what they must decode to, and what a forger would make of them."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import ByteModel
from autoquant.core.subgroup import Matrix, Partition, even_sizes, frequency_buckets
from autoquant.pack.checkpoint import PackedFile, metadata_text, write_packed
from autoquant.quantizers import QUANTIZERS, CodebookQuantizer, Quantizer

MIDRISE = QUANTIZERS["midrise"]
IDS = torch.tensor([[2, 7, 30, 41, 3, 0], [2, 9, 61, 12, 55, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])


def save(material: Any, classifier: PreTrainedModel, folder: Path, **changes: object) -> Path:
    """A packed folder as it is shipped."""
    folder.mkdir(exist_ok=True)
    config = json.loads(classifier.config.to_json_string())
    config |= {"quantization_config": {"quant_method": "autoquant"}, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    material.write(folder / "model.safetensors")
    return folder


def simulated(material: Any, classifier: PreTrainedModel) -> PreTrainedModel:
    """The same classifier with plain modules that hold the quantised weights."""
    state = {name: tensor.half().float() for name, tensor in material.state.items()}
    for partition in material.model.partitions:
        name = partition.matrix.name
        weight = torch.zeros_like(state[name])
        for row, bits in enumerate(material.allocation.row_bits(partition)):
            if bits:
                one = slice(row, row + 1)
                weight[one] = MIDRISE.fake_quantize(material.state[name][one], material.scales[name][one], int(bits))
        state[name] = weight
    model = type(classifier)(classifier.config)
    model.load_state_dict(state)
    return model.eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).logits


@dataclass(frozen=True)
class Case:
    """A byte model with random weights, scales (or codebooks) and bits of a seed."""

    model: ByteModel
    note: str
    seed: int
    name: str = "midrise"

    @classmethod
    def of(
        cls, partitions: tuple[Partition, ...], rest: dict[str, tuple[int, ...]], scale: str, note: str, seed: int, name: str
    ) -> "Case":
        """The case of a quantizer, by name."""
        case = cls(ByteModel(partitions, rest, scale, "", storage=QUANTIZERS[name].storage), note, seed, name)
        return replace(case, model=replace(case.model, metadata=metadata_text(case.options)))

    @property
    def quantizer(self) -> Quantizer:
        return QUANTIZERS[self.name]

    @property
    def options(self) -> dict[str, object]:
        return {"quantizer": self.name, "scale": self.model.scale, "activation_bits": 8, "note": self.note}

    @cached_property
    def latent(self) -> dict[str, torch.Tensor]:
        """The matrices before anything is quantised."""
        draw = torch.Generator().manual_seed(self.seed)
        return {p.matrix.name: torch.randn(p.matrix.rows, p.matrix.columns, generator=draw) for p in self.model.partitions}

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """What `write_packed` takes: of codebook quantizers the values that are to be stored."""
        coded = isinstance(self.quantizer, CodebookQuantizer)
        state = {p.matrix.name: self.simulated(p) for p in self.model.partitions} if coded else dict(self.latent)
        draw = torch.Generator().manual_seed(self.seed + 2)
        return state | {name: torch.randn(shape, generator=draw) for name, shape in self.model.rest.items()}

    @cached_property
    def scales(self) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(self.seed + 1)
        if isinstance(self.quantizer, CodebookQuantizer):
            most = max(self.quantizer.storage.numbers(bits) for bits in self.quantizer.widths)
            return {p.matrix.name: torch.randn(p.groups, most, generator=draw).half().float() for p in self.model.partitions}
        numbers = (2,) if self.quantizer.asymmetric else ()
        sizes = {p.matrix.name: p.matrix.rows if self.model.scale == "row" else p.groups for p in self.model.partitions}
        return {name: (0.2 + torch.rand(size, *numbers, generator=draw)).half().float() for name, size in sizes.items()}

    @cached_property
    def allocation(self) -> BitAllocation:
        draw = np.random.default_rng(self.seed)
        bits = {p.matrix.name: tuple(int(b) for b in draw.choice(p.widths, p.groups)) for p in self.model.partitions}
        return BitAllocation(bits)

    def write(self, path: Path) -> Path:
        return write_packed(path, self.state, self.scales, self.allocation, self.model, self.quantizer, self.options)

    def simulated(self, partition: Partition) -> torch.Tensor:
        """What the file must decode to, one row at a time."""
        name, rows = partition.matrix.name, []
        if isinstance(self.quantizer, CodebookQuantizer):
            return self._simulated_codebooks(partition, self.quantizer)
        for row, bits in enumerate(self.allocation.row_bits(partition)):
            weight = self.latent[name][row : row + 1]
            scale = self.scales[name][row if self.model.scale == "row" else partition.group_of_row[row]]
            rows.append(self.quantizer.fake_quantize(weight, scale[None], int(bits)) if bits else torch.zeros_like(weight))
        return torch.cat(rows)

    def _simulated_codebooks(self, partition: Partition, quantizer: CodebookQuantizer) -> torch.Tensor:
        """Sub-group by sub-group."""
        name = partition.matrix.name
        values = torch.zeros_like(self.latent[name])
        for group, bits in enumerate(self.allocation.bits[name]):
            rows = torch.from_numpy(partition.group_of_row == group)
            if bits and bool(rows.any()):
                weight, codebook = self.latent[name][rows], self.scales[name][[group], : quantizer.storage.numbers(bits)]
                values[rows] = quantizer.fake_quantize(weight, codebook, torch.zeros(len(weight), dtype=torch.int64), bits)
        return values


def small_case(name: str = "midrise") -> Case:
    """One matrix with buckets, one with runs, and a bias; wide enough for outliers where the quantizer has such."""
    buckets, sizes = frequency_buckets(np.arange(9), 3)
    columns = 500 if QUANTIZERS[name].storage.outlier_every else 5
    scale = "subgroup" if isinstance(QUANTIZERS[name], CodebookQuantizer) else "row"
    partitions = (
        Partition(Matrix("words", 9, columns, "word_embedding"), (1, 2, 8), sizes, buckets),
        Partition(Matrix("query", 6, columns, "query", 0), (0, 2, 3), even_sizes(6, 2 if columns > 5 else 4)),
    )
    return Case.of(partitions, {"bias": (6,)}, scale, "", 3, name)


def decoded(packed: PackedFile) -> dict[str, bytes]:
    """Everything a reader can see, as bytes to compare."""
    parts = {name: matrix.dequantise(packed.quantizer).numpy().tobytes() for name, matrix in packed.matrices.items()}
    parts |= {name: tensor.numpy().tobytes() for name, tensor in packed.rest.items()}
    return parts | {"settings": json.dumps(packed.settings, sort_keys=True).encode()}


def signed(raw: bytes) -> bytes:
    """`raw` with the checksum it should have: what a forger can do."""
    length = int.from_bytes(raw[:8], "little")
    head, data = raw[: 8 + length], raw[8 + length :]
    start = head.index(b'sha256\\":\\"') + len(b'sha256\\":\\"')
    empty = head[:start] + head[start + 64 :]
    return head[:start] + hashlib.sha256(empty + data).hexdigest().encode() + head[start + 64 :] + data
