"""Thousands of damaged and forged files: every one is an error in one line, or decodes within bounds; none hangs or crashes.

Damage is what happens to a file; its checksum notices all of it. A forgery has the right checksum for whatever it says, so
that the checks behind the checksum are reached.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

import autoquant
from autoquant.core.errors import AutoquantError, CheckpointError
from autoquant.pack.checkpoint import read_packed
from autoquant.pack.matrix import MOST_ROWS
from autoquant.pack.model import load_packed
from packed import decoded, save, signed, small_case

MANY = settings(deadline=20_000, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
SOME = settings(MANY, max_examples=40)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["row", "lsq"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module", params=["midrise", "gobo", "pq"])
def small_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a valid file of one matrix with runs, one with buckets, and a bias."""
    return small_case(request.param).write(tmp_path_factory.mktemp("packed") / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def folder(
    make_material: Callable[..., Any], tiny_classifier: BertForSequenceClassification, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A packed classifier; its model.safetensors is written again by every example."""
    return save(make_material(), tiny_classifier, tmp_path_factory.mktemp("model"), dtype="float32")


@pytest.fixture(scope="module")
def whole_file(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Bytes or bits changed, cut off, cut out, doubled, put in, put behind."""
    share, kind = (
        draw(st.floats(0, 1, exclude_max=True)),
        draw(st.sampled_from(["change", "flip", "end", "out", "double", "in", "behind"])),
    )
    junk, bit, width = draw(st.binary(min_size=1, max_size=20)), draw(st.integers(0, 7)), draw(st.integers(1, 64))

    def damage(raw: bytes) -> bytes:
        at = int(share * len(raw))
        before, after = raw[:at], raw[at:]
        return {
            "change": before + junk + after[len(junk) :],
            "flip": before + bytes([raw[at] ^ (1 << bit)]) + after[1:],
            "end": before,
            "out": before + after[width:],
            "double": before + after[:width] + after,
            "in": before + junk + after,
            "behind": raw + junk,
        }[kind]

    return damage


@st.composite
def header_edits(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """One entry of the header, or one setting, made to say something else; the checksum is that of the result."""
    share, value = draw(st.floats(0, 1, exclude_max=True)), draw(JSON)
    field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "name", "drop", "setting", "new-setting", "whole"]))
    dtype = draw(st.sampled_from(["U8", "I8", "F16", "BF16", "F32", "F64", "I64", "BOOL", "F8_E4M3", "C64", "X1"]))
    size = st.integers(0, 12) | st.sampled_from([2**16, 2**32, 2**40, 2**63, 2**64 - 1])
    sizes = draw(st.lists(size, max_size=3))

    def edit(raw: bytes) -> bytes:
        length = int.from_bytes(raw[:8], "little")
        header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
        metadata = json.loads(header["__metadata__"]["autoquant"])
        names = [name for name in header if name != "__metadata__"]
        name = names[int(share * len(names))]
        if field in ("dtype", "shape", "data_offsets"):
            header[name][field] = dtype if field == "dtype" else sizes
        elif field == "name":
            header[str(value)] = header.pop(name)
        elif field == "drop":
            del header[name]
        elif field == "whole":
            header[name] = value
        else:
            keys = sorted(metadata) if field == "setting" else ["activations", "row_scales", "activation_bits", "surprise"]
            metadata[keys[int(share * len(keys))]] = value
        metadata["sha256"] = "0" * 64
        header["__metadata__"]["autoquant"] = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
        text = json.dumps(header, separators=(",", ":")).encode()
        return signed(len(text).to_bytes(8, "little") + text + data)

    return edit


@st.composite
def data_edits(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A few bytes behind the header: sizes, widths, buckets, scales and codes; the checksum is that of the result."""
    places = draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))

    def edit(raw: bytes) -> bytes:
        start = 8 + int.from_bytes(raw[:8], "little")
        changed = bytearray(raw)
        for share, value in places:
            changed[start + int(share * (len(raw) - start))] = value
        return signed(bytes(changed))

    return edit


def refused(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        read_packed(path)
    assert "\n" not in str(caught.value)


def refused_or_decoded(path: Path, raw: bytes) -> None:
    """A forger may write another valid file; then every matrix decodes to finite numbers of the size it claims."""
    path.write_bytes(raw)
    try:
        packed = read_packed(path)
    except CheckpointError:
        return
    decoded(packed)
    for matrix in packed.matrices.values():
        weight = matrix.dequantise(packed.quantizer)
        assert weight.shape == (matrix.rows, matrix.columns)
        assert bool(weight.isfinite().all())
    assert packed.to_bytes() == raw


@settings(MANY, max_examples=700)
@given(damage=damages())
def test_any_damage_is_noticed(damage: Callable[[bytes], bytes], small_file: bytes, tmp_path: Path) -> None:
    damaged = damage(small_file)
    if damaged != small_file:
        refused(tmp_path / "damaged", damaged)


@MANY
@given(damage=damages())
def test_damage_with_a_forged_checksum(damage: Callable[[bytes], bytes], small_file: bytes, tmp_path: Path) -> None:
    try:
        forged = signed(damage(small_file))
    except ValueError:  # no place for a checksum is left
        return
    refused_or_decoded(tmp_path / "forged", forged)


@MANY
@given(edit=header_edits())
def test_forged_headers(edit: Callable[[bytes], bytes], small_file: bytes, tmp_path: Path) -> None:
    refused_or_decoded(tmp_path / "forged", edit(small_file))


@MANY
@given(edit=data_edits())
def test_forged_sizes_widths_and_scales(edit: Callable[[bytes], bytes], small_file: bytes, tmp_path: Path) -> None:
    refused_or_decoded(tmp_path / "forged", edit(small_file))


@SOME
@given(damage=damages())
def test_no_damage_reaches_a_model(damage: Callable[[bytes], bytes], folder: Path, whole_file: bytes) -> None:
    damaged = damage(whole_file)
    if damaged == whole_file:
        return
    (folder / "model.safetensors").write_bytes(damaged)
    for load in (load_packed, AutoModelForSequenceClassification.from_pretrained):
        with pytest.raises(CheckpointError):
            load(folder)


@SOME
@given(edit=header_edits() | data_edits())
def test_a_forged_model_is_refused_or_runs(edit: Callable[[bytes], bytes], folder: Path, whole_file: bytes) -> None:
    (folder / "model.safetensors").write_bytes(edit(whole_file))
    for load in (load_packed, AutoModelForSequenceClassification.from_pretrained):
        with suppress(AutoquantError), torch.no_grad():
            assert load(folder)(torch.tensor([[2, 7, 3]])).logits.shape == (1, 2)


def layout_of(rows: int, columns: int, raw: bytes) -> bytes:
    """The file with its second matrix ("query") claiming a size, all of it pruned, so that no bytes are missing."""
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
    begin, _ = header["query_layout"]["data_offsets"]
    data[begin : begin + 8] = rows.to_bytes(4, "little") + columns.to_bytes(4, "little")
    return signed(raw[: 8 + length] + bytes(data))


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (6, 0), (MOST_ROWS, 5), (2**32 - 1, 2**32 - 1), (6, 2**32 - 1)])
def test_sizes_that_no_model_has(rows: int, columns: int, small_file: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "forged", layout_of(rows, columns, small_file))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"activations": ["static"]}, "no such activations"),
        ({"activations": "static", "activation_bits": 32}, "no such activations"),
        ({"row_scales": [["words"]]}, "no list of names"),
        ({"row_scales": "words"}, "no list of names"),
        ({"quantizer": ["midrise"]}, "unknown quantizer"),
        ({"scale": {"row": 1}}, "scale is not row"),
    ],
)
def test_settings_of_another_kind(settings_: dict[str, Any], message: str, small_file: bytes, tmp_path: Path) -> None:
    length = int.from_bytes(small_file[:8], "little")
    header = json.loads(small_file[8 : 8 + length])
    changed = {**json.loads(header["__metadata__"]["autoquant"]), **settings_}
    header["__metadata__"]["autoquant"] = json.dumps(changed, sort_keys=True, separators=(",", ":"))
    text = json.dumps(header, separators=(",", ":")).encode()
    (tmp_path / "forged").write_bytes(signed(len(text).to_bytes(8, "little") + text + small_file[8 + length :]))
    with pytest.raises(CheckpointError, match=message):
        read_packed(tmp_path / "forged")


def test_a_large_claim_takes_no_memory(small_file: bytes, tmp_path: Path) -> None:
    """A header of 2^62 bytes, a file of a terabyte of holes, and a matrix of 2^64 weights, each read with 2 GiB to spare."""
    (tmp_path / "header").write_bytes((2**62).to_bytes(8, "little") + small_file[8:])
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(2**40)
    (tmp_path / "matrix").write_bytes(layout_of(2**32 - 1, 2**32 - 1, small_file))
    code = (
        "import resource, sys\n"
        "from autoquant.core.errors import CheckpointError\n"
        "from autoquant.pack.checkpoint import read_packed\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, used + 2**31))\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        read_packed(path)\n"
        "    except CheckpointError:\n"
        "        continue\n"
        "    sys.exit(path + ' was read')\n"
    )
    paths = [str(tmp_path / name) for name in ("header", "holes", "matrix")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)


def test_the_mutated_files_are_otherwise_sound(small_file: bytes, folder: Path, whole_file: bytes, tmp_path: Path) -> None:
    """Unchanged, both files load: what is refused above is refused for its damage."""
    (tmp_path / "whole").write_bytes(signed(small_file))
    assert read_packed(tmp_path / "whole").to_bytes() == small_file
    (folder / "model.safetensors").write_bytes(whole_file)
    assert autoquant.AutoquantConfig().memory == "unpacked"
    assert AutoModelForSequenceClassification.from_pretrained(folder)(torch.tensor([[2, 7, 3]])).logits.shape == (1, 2)
