"""The packed file: one safetensors file that holds everything needed to decode it, at exactly the bytes predicted.

The layout is that of core/cost.py. The header is written here and not by the safetensors library since its length must not
depend on the allocation; the library reads it. Settings travel as JSON text under the metadata key "autoquant", among them
the SHA-256 of the whole file as it would be with an empty checksum.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import CHECKSUM_CHARACTERS, HALF_PARTS, ByteModel, header_json
from autoquant.core.errors import CheckpointError
from autoquant.core.files import atomic_write_bytes
from autoquant.core.space import SCALES
from autoquant.pack.matrix import Layout, PackedMatrix, check_sizes
from autoquant.pack.quantise import quantise
from autoquant.quantizers import QUANTIZERS
from autoquant.quantizers.base import Quantizer

FORMAT, VERSION = "autoquant", 1
LENGTH_BYTES = 8  # of the header's length, ahead of it
ACTIVATION_BITS = {"dynamic": (8, 32), "static": (4, 8)}  # by how a layer's input gets its range
MOST_BYTES, MOST_HEADER_BYTES = 2**32, 2**22  # no model of this family comes near these; more is refused unread
PARTS, OUTLIER_PARTS = ("codes", "scales", "layout"), ("outliers", "positions")


@dataclass(frozen=True, eq=False)
class PackedFile:
    """A packed file in memory: matrices and all other tensors (float16) by state-dict name, the settings and the header."""

    matrices: dict[str, PackedMatrix]
    rest: dict[str, Tensor]
    settings: dict[str, Any]
    header: bytes

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under its name in the file."""
        parts = {f"{name}_{part}": t for name, matrix in self.matrices.items() for part, t in matrix.parts().items()}
        return self.rest | parts

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings it was packed with."""
        return {key: value for key, value in self.settings.items() if key not in ("format", "version")}

    def to_bytes(self) -> bytes:
        """The file again, to the byte."""
        entries = json.loads(self.header[LENGTH_BYTES:])
        entries.pop("__metadata__")
        tensors = self.tensors
        order = sorted(entries, key=lambda name: entries[name]["data_offsets"])
        return self.header + b"".join(tensors[name].numpy().tobytes() for name in order)

    @property
    def quantizer(self) -> Quantizer:
        return QUANTIZERS[self.settings["quantizer"]]


def metadata_text(settings: Mapping[str, object], checksum: str = "") -> str:
    """The text of `ByteModel.metadata`: settings (JSON values), versioned.

    `quantizer`, `scale` and `activation_bits` must be there; `row_scales` names the matrices with a scale per row where `scale`
    is `subgroup`; `activations` is `static` where every quantised input has a learned range, stored beside its layer's weight.
    """
    missing = {"quantizer", "scale", "activation_bits"} - set(settings)
    if missing:
        raise ValueError(f"settings of a packed file lack {', '.join(sorted(missing))}")
    text = {**settings, "format": FORMAT, "version": VERSION, "sha256": checksum}
    return json.dumps(text, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_packed(
    path: str | Path,
    state: Mapping[str, Tensor],
    scales: Mapping[str, Tensor],
    allocation: BitAllocation,
    model: ByteModel,
    quantizer: Quantizer,
    settings: Mapping[str, object],
) -> Path:
    """Encode a model and write `path` atomically; its size is `model.exact_bytes(allocation)`.

    `state`: the full state dict, the matrices not yet quantised; `scales`: matrix name -> [rows] or, where the model's
    scale is `subgroup`, [groups], positive and exact in float16; both without the units that the allocation removes. For
    codebook quantizers: see `pack.matrix.quantise`.
    `model.metadata` must be `metadata_text(settings)`.
    Raises CheckpointError when something does not fit, RunError when the disk is full or not writable.
    """
    if metadata_text(settings) != model.metadata:
        raise CheckpointError("The settings are not those of the byte model: build both from the same metadata_text(settings).")
    model = model.without(allocation.removed)
    allocation.check_fits(model.partitions)
    tensors = _encode(state, scales, allocation, model, quantizer)
    entries = model.entries(allocation)
    data = b"".join(tensors[entry.name].numpy().tobytes() for entry in entries)
    header = header_json(entries, metadata_text(settings))
    padding = b" " * (model.header_bytes - LENGTH_BYTES - CHECKSUM_CHARACTERS - len(header))
    length = (model.header_bytes - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "little")
    checksum = hashlib.sha256(length + header + padding + data).hexdigest()
    atomic_write_bytes(path, length + header_json(entries, metadata_text(settings, checksum)) + padding + data)
    return Path(path)


def _encode(
    state: Mapping[str, Tensor],
    scales: Mapping[str, Tensor],
    allocation: BitAllocation,
    model: ByteModel,
    quantizer: Quantizer,
) -> dict[str, Tensor]:
    """Every tensor of the file by name, little-endian on the machines that torch runs on."""
    tensors = {}
    for name, shape in model.rest.items():
        tensors[name] = state[name].detach().cpu().half()
        if tensors[name].shape != torch.Size(shape):
            raise CheckpointError(f"{name}: shape {[*state[name].shape]}, the byte model has {[*shape]}.")
        if not bool(tensors[name].isfinite().all()):
            raise CheckpointError(f"{name}: a value is not finite in float16.")
    for partition in model.partitions:
        name = partition.matrix.name
        scale = partition.scale_or(model.scale)
        packed = quantise(state[name], scales[name], partition, allocation.bits[name], scale, quantizer)
        tensors |= {f"{name}_{part}": tensor for part, tensor in packed.parts().items()}
    return tensors


def read_packed(path: str | Path) -> PackedFile:
    """Read and check a packed file; runs nothing that is in it. Raises CheckpointError, in one line, for any damage."""
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes: no packed model is that large.")
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        header, settings = _checked_settings(raw)
        return _assemble(_tensors(raw), settings, header)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _checked_settings(raw: bytes) -> tuple[bytes, dict[str, Any]]:
    """Header and settings of a file whose checksum, format and version are right."""
    length = int.from_bytes(raw[:LENGTH_BYTES], "little")
    if length > MOST_HEADER_BYTES:
        raise CheckpointError(f"its header claims {length} bytes, {MOST_HEADER_BYTES} is the most: corrupt or no packed file.")
    if len(raw) < LENGTH_BYTES + length:
        raise CheckpointError(f"the header should have {length} bytes, the file has {len(raw)}: truncated or no packed file.")
    header = raw[: LENGTH_BYTES + length]
    settings = _settings(header[LENGTH_BYTES:])
    checksum = settings.pop("sha256", None)
    if settings.get("version") != VERSION:
        raise CheckpointError(f"version {settings.get('version')!r} of the format, this autoquant reads {VERSION}: update it.")
    if not isinstance(checksum, str) or not re.fullmatch("[0-9a-f]{64}", checksum):
        raise CheckpointError("the file has no checksum: corrupt.")
    digest = hashlib.sha256(header.replace(checksum.encode(), b"", 1))
    digest.update(memoryview(raw)[len(header) :])
    if digest.hexdigest() != checksum:
        raise CheckpointError("the checksum does not match: the file is truncated or corrupt, copy or pack it again.")
    if not isinstance(settings.get("quantizer"), str) or settings["quantizer"] not in QUANTIZERS:
        raise CheckpointError(f"unknown quantizer {settings.get('quantizer')!r}; known are {', '.join(sorted(QUANTIZERS))}.")
    names = settings.get("row_scales", [])
    if settings.get("scale") not in SCALES or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError("its scale is not row or subgroup, or row_scales is no list of names: corrupt.")
    mode = settings.get("activations", "dynamic")
    if not isinstance(mode, str) or settings.get("activation_bits") not in ACTIVATION_BITS.get(mode, ()):
        raise CheckpointError(f"activation_bits {settings.get('activation_bits')!r}, {mode!r}: no such activations; corrupt.")
    return header, settings


def _settings(header: bytes) -> dict[str, Any]:
    try:
        settings = json.loads(json.loads(header)["__metadata__"][FORMAT])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError("no packed file of autoquant: its header has no autoquant settings.") from error
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise CheckpointError("no packed file of autoquant: its settings do not name the format.")
    return settings


def _tensors(raw: bytes) -> dict[str, Tensor]:
    """The tensors in the very bytes that were hashed (the file could have changed since)."""
    try:
        return safetensors.torch.load(raw)
    except Exception as error:  # forged headers make the library raise many kinds
        raise CheckpointError("safetensors cannot read it: the file is corrupt.") from error


def _assemble(tensors: dict[str, Tensor], settings: dict[str, Any], header: bytes) -> PackedFile:
    rest, row_scales = dict(tensors), frozenset(settings.get("row_scales", []))
    quantizer = QUANTIZERS[settings["quantizer"]]
    names = [key.removesuffix("_layout") for key, tensor in tensors.items() if _is_layout(key, tensor)]
    wanted = PARTS + (OUTLIER_PARTS if quantizer.storage.outlier_every else ())
    parts = {name: {part: _part(rest, name, part) for part in wanted} for name in names}
    layouts = {}
    for name in names:
        buckets = _part(rest, name, "buckets") if f"{name}_buckets" in rest else None
        scale = "row" if name in row_scales else settings["scale"]
        layouts[name] = Layout(parts[name].pop("layout"), buckets, scale, quantizer.storage)
    check_sizes(layouts)
    matrices = {name: PackedMatrix(layout=layouts[name], **parts[name]) for name in names}
    for name, matrix in matrices.items():
        matrix.check(name, quantizer)
    for name, tensor in rest.items():
        if tensor.dtype != torch.float16 or not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{name}: not float16, or not finite: the file is corrupt.")
        if name.endswith(".input_range") and not bool((tensor.flatten()[:1] > 0).all()):
            raise CheckpointError(f"{name}: its step is not a positive number: the file is corrupt.")
    return PackedFile(matrices, rest, settings, header)


def _is_layout(key: str, tensor: Tensor) -> bool:
    return key.endswith("_layout") and tensor.dtype == torch.uint8


def _part(tensors: dict[str, Tensor], name: str, part: str) -> Tensor:
    tensor, dtype = tensors.pop(f"{name}_{part}", None), torch.float16 if part in HALF_PARTS else torch.uint8
    if tensor is None or tensor.dtype != dtype or tensor.dim() != 1:
        raise CheckpointError(f"{name}_{part}: missing, or not a vector of {dtype}: the file is corrupt.")
    return tensor
