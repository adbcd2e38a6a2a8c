import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from autoquant.core.allocation import BitAllocation
from autoquant.core.cost import ByteModel
from autoquant.core.errors import CheckpointError
from autoquant.core.subgroup import Matrix, Partition, even_sizes, frequency_buckets
from autoquant.pack.checkpoint import metadata_text, read_packed, write_packed
from autoquant.quantizers import QUANTIZERS, CodebookQuantizer
from packed import MIDRISE, Case, signed, small_case

ONE_FILE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Ragged matrices, runs and buckets, a scale per row or sub-group, settings that need escapes in JSON; every quantizer."""
    name = draw(st.sampled_from(sorted(QUANTIZERS)))
    quantizer, partitions = QUANTIZERS[name], []
    widths, columns = (0, *quantizer.widths), 300 if quantizer.storage.outlier_every else 21
    for index in range(draw(st.integers(1, 3))):
        rows, groups = draw(st.integers(1, 40)), draw(st.integers(1, 12))
        matrix = Matrix(f"matrix.{index}", rows, draw(st.integers(1, columns)), "query", 0)
        if draw(st.booleans()):
            buckets, sizes = frequency_buckets(np.arange(rows)[::-1] % 9, groups)
            partitions.append(Partition(matrix, widths, sizes, buckets))
        else:
            partitions.append(Partition(matrix, widths, even_sizes(rows, groups)))
    rest = {f"bias.{i}": (size,) for i, size in enumerate(draw(st.lists(st.integers(1, 9), max_size=3)))}
    scales = ["subgroup"] if isinstance(quantizer, CodebookQuantizer) else ["row", "subgroup"]
    scale, note = draw(st.sampled_from(scales)), draw(st.text(max_size=5))
    return Case.of(tuple(partitions), rest, scale, note, draw(st.integers(0, 2**31)), name)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a valid file."""
    return small_case().write(tmp_path_factory.mktemp("packed") / "model.safetensors").read_bytes()


@settings(ONE_FILE, max_examples=100)
@given(case=cases())
def test_file_has_the_predicted_size_and_decodes_to_the_simulated_weights(case: Case, tmp_path: Path) -> None:
    path = case.write(tmp_path / "model.safetensors")
    assert path.stat().st_size == case.model.exact_bytes(case.allocation)
    packed = read_packed(path)
    assert set(packed.matrices) == {p.matrix.name for p in case.model.partitions}
    for partition in case.model.partitions:
        matrix = packed.matrices[partition.matrix.name]
        assert matrix.bits == case.allocation.bits[partition.matrix.name]
        assert torch.equal(matrix.dequantise(packed.quantizer), case.simulated(partition))
    assert set(packed.rest) == set(case.model.rest)
    assert all(torch.equal(tensor, case.state[name].half()) for name, tensor in packed.rest.items())
    assert packed.settings == {**case.options, "format": "autoquant", "version": 1}


@pytest.mark.parametrize(
    ("name", "digest"), [("lsq", "39e65ee13f8410d9"), ("midrise", "4847ff428c8fc014"), ("minmax", "0453823277dc8206")]
)
def test_files_are_what_they_were_before_there_were_codebooks(name: str, digest: str, tmp_path: Path) -> None:
    buckets, sizes = frequency_buckets(np.arange(9), 3)
    words = Partition(Matrix("words", 9, 5, "word_embedding"), (1, 2, 8), sizes, buckets)
    query = Partition(Matrix("query", 6, 5, "query", 0), (0, 2, 3, 4), even_sizes(6, 4))
    options: dict[str, object] = {"quantizer": name, "scale": "row", "activation_bits": 8}
    model = ByteModel((words, query), {"bias": (6,)}, "row", metadata_text(options), storage=QUANTIZERS[name].storage)
    state = {p.matrix.name: (torch.arange(p.matrix.rows * 5) * 7 % 11 - 5).view(-1, 5) / 2 for p in model.partitions}
    scales = {name: torch.ones(len(weight), model.storage.scales).squeeze(1) for name, weight in state.items()}
    state["bias"] = torch.arange(6.0)
    allocation = BitAllocation({"words": (8, 1, 2), "query": (3, 0, 4, 2)})
    path = write_packed(tmp_path / "file", state, scales, allocation, model, QUANTIZERS[name], options)
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_every_quantizer_declares_its_bytes_and_comes_back_exactly(name: str, tmp_path: Path) -> None:
    case = small_case(name)
    case = Case.of(
        tuple(replace(p, widths=case.quantizer.widths) for p in case.model.partitions),
        {"bias": (6,)},
        case.model.scale,
        "",
        5,
        name,
    )
    path = case.write(tmp_path / "model.safetensors")
    assert path.stat().st_size == case.model.exact_bytes(case.allocation)
    packed = read_packed(path)
    for partition in case.model.partitions:
        assert torch.equal(packed.matrices[partition.matrix.name].dequantise(packed.quantizer), case.simulated(partition))
    assert packed.to_bytes() == path.read_bytes()


def test_real_model_fills_its_prediction(make_material: Callable[..., Any], tmp_path: Path) -> None:
    sizes = set()
    for seed, scale in enumerate(["row", "subgroup", "row"]):
        material = make_material(scale=scale, seed=seed)
        path = material.write(tmp_path / f"{seed}.safetensors")
        sizes.add(path.stat().st_size)
        assert path.stat().st_size == material.model.exact_bytes(material.allocation)
    assert len(sizes) == 3


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    case = small_case()
    with safe_open(case.write(tmp_path / "model.safetensors"), framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["autoquant"])["quantizer"] == "midrise"
        entries = case.model.entries(case.allocation)
        assert set(file.keys()) == {entry.name for entry in entries}
        for entry in entries:
            stored = file.get_slice(entry.name)
            assert (stored.get_dtype(), tuple(stored.get_shape())) == (entry.dtype, entry.shape)


def test_same_input_same_bytes_and_no_leftovers(tmp_path: Path) -> None:
    first = small_case().write(tmp_path / "a.safetensors").read_bytes()
    assert small_case().write(tmp_path / "b.safetensors").read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_bfloat16_weights_pack_like_their_float32_values(tmp_path: Path) -> None:
    case = small_case()
    short = {name: tensor.bfloat16() for name, tensor in case.state.items()}
    long = {name: tensor.float() for name, tensor in short.items()}
    arguments = case.scales, case.allocation, case.model, MIDRISE, case.options
    files = [write_packed(tmp_path / str(i), state, *arguments).read_bytes() for i, state in enumerate((short, long))]
    assert files[0] == files[1]


def test_refuses_to_write_what_would_not_read_back(tmp_path: Path) -> None:
    case, path = small_case(), tmp_path / "model.safetensors"
    large = {**case.state, "bias": torch.full((6,), 1e6)}
    with pytest.raises(CheckpointError, match="bias: a value is not finite in float16"):
        write_packed(path, large, case.scales, case.allocation, case.model, MIDRISE, case.options)
    with pytest.raises(CheckpointError, match="same metadata_text"):
        write_packed(path, case.state, case.scales, case.allocation, case.model, MIDRISE, {**case.options, "note": "x"})
    with pytest.raises(CheckpointError, match="does not fit this model"):
        write_packed(path, case.state, case.scales, BitAllocation({}), case.model, MIDRISE, case.options)
    with pytest.raises(ValueError, match="lack activation_bits"):
        metadata_text({"quantizer": "midrise", "scale": "row"})
    assert not list(tmp_path.iterdir())


def test_signing_reproduces_the_writers_checksum(small_file: bytes) -> None:
    assert signed(small_file) == small_file


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'\\"version\\":1', b'\\"version\\":7', "version 7 of the format, this autoquant reads 1"),
        (b"midrise", b"mystery", "unknown quantizer 'mystery'; known are gobo, lsq, midrise"),
        (b'\\"scale\\":\\"row\\"', b'\\"scale\\":\\"raw\\"', "scale is not row or subgroup"),
        (b'\\"autoquant\\"', b'\\"autoquack\\"', "do not name the format"),
        (b'"autoquant":', b'"autoquack":', "no packed file of autoquant"),
        (b"query_codes", b"query_coats", "query_codes: missing"),
        (b"query_layout", b"query_layers", "not float16"),
        (b"[6]", b"[7]", "safetensors cannot read it"),
    ],
)
def test_forged_headers_are_refused_by_name(old: bytes, new: bytes, message: str, small_file: bytes, tmp_path: Path) -> None:
    assert old in small_file
    (tmp_path / "forged").write_bytes(signed(small_file.replace(old, new)))
    with pytest.raises(CheckpointError, match=message):
        read_packed(tmp_path / "forged")


def test_foreign_and_missing_files(tmp_path: Path, tiny_classifier_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="no autoquant settings"):
        read_packed(tiny_classifier_dir / "model.safetensors")
    with pytest.raises(CheckpointError, match="No such file"):
        read_packed(tmp_path / "nothing")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(CheckpointError, match="truncated or no packed file"):
        read_packed(tmp_path / "empty")
    (tmp_path / "bomb").write_bytes((10**6).to_bytes(8, "little") + b"[" * 10**6)
    with pytest.raises(CheckpointError, match="no autoquant settings"):
        read_packed(tmp_path / "bomb")
