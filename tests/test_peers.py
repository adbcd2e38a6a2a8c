"""Other tools' widths are weighed as our packer would, and a tool's result becomes a cell of the comparison."""

import sys
from pathlib import Path

import numpy as np
import pytest

from autoquant.blueprint import Blueprint
from autoquant.compare.cells import read_cells
from autoquant.compare.table import report
from autoquant.core.errors import SpaceError
from autoquant.core.settings import load_preset
from autoquant.tasks.load import load_glue

PEERS = Path(__file__).parents[1] / "experiments" / "peers"
sys.path.insert(0, str(PEERS))

import run as peers  # noqa: E402
from recount import recount  # noqa: E402

QUERY = "bert.encoder.layer.0.attention.self.query.weight"  # 32 x 32


@pytest.fixture
def blueprint(tiny_classifier_dir: Path, tiny_data: Path) -> Blueprint:
    return Blueprint.draw(str(tiny_classifier_dir), load_glue("sst2", tiny_data), load_preset("default"), 32, False)


def test_one_matrix_by_hand(blueprint: Blueprint) -> None:
    """Of 16-bit floats, 32 rows of 32 codes of 3 bits (12 bytes) with a scale of 2 bytes each, and a layout of 8 + 1 bytes."""
    none, one = recount(blueprint, {}), recount(blueprint, {QUERY: 3})
    weights = sum(p.matrix.parameters for p in blueprint.partitions if p.matrix.layer is not None)
    assert none.linear == 2 * weights
    assert none.linear_bits == 16
    assert none.linear - one.linear == 2 * 32 * 32 - 32 * (12 + 2)
    assert one.linear_bits == pytest.approx(16 - 13 * 32 * 32 / weights)
    header = none.file - one.file - (2 * 32 * 32 - 32 * (12 + 2) - 9)
    assert -600 < header < 0  # three tensors instead of one have longer names in the header


def test_scales_of_groups_count(blueprint: Blueprint) -> None:
    """32 inputs in groups of 12 are 3 groups: two scales of 2 bytes more for each of 32 rows."""
    rows, groups = recount(blueprint, {QUERY: 4}), recount(blueprint, {QUERY: 4}, {QUERY: 12})
    assert groups.linear - rows.linear == groups.file - rows.file == 2 * 2 * 32
    assert groups.linear_bits == rows.linear_bits


@pytest.mark.parametrize("bits", [{QUERY: 5}, {"no.such.weight": 4}])
def test_what_cannot_be_packed_is_refused(bits: dict[str, int], blueprint: Blueprint) -> None:
    with pytest.raises(SpaceError, match="cannot be packed"):
        recount(blueprint, bits)


def test_matrices_are_found_in_a_graph(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    a, b, words = (np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32) for seed in range(3))
    tensors = {"merged": np.concatenate([a, b]).T, "words": words, "other": words + 1, "bias": a[0]}
    held = [onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in tensors.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], held)), tmp_path / "g.onnx")
    found = peers.in_graph(tmp_path / "g.onnx", {"a": a, "b": b, "words": words})
    assert found == {"merged": ["a", "b"], "words": ["words"], "other": []}


def test_dynamic_int8_becomes_a_cell(
    blueprint: Blueprint, tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one tool that tests have at hand, in this interpreter."""
    pytest.importorskip("onnxruntime")
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    data = ["--data-dir", str(tiny_data), "--teacher", str(tiny_classifier_dir), "--max-length", "32", "--calibration", "16"]
    tool = ["--tools", "onnxruntime", "--python", f"onnxruntime={sys.executable}", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["run.py", *data, *tool, *folders])
    peers.main()
    (cell,) = read_cells(tmp_path / "results")
    floats = {"bert.embeddings.position_embeddings.weight"}
    assert cell.method == "onnxruntime-int8"
    assert cell.allocation == {p.matrix.name: 8 for p in blueprint.partitions if p.matrix.name not in floats}
    assert cell.file_bytes == recount(blueprint, cell.allocation).file
    assert cell.recipe["own_file_bytes"] == (tmp_path / "runs" / "sst2-onnxruntime-int8" / "model.onnx").stat().st_size
    assert cell.recipe["linear_bits"] == 8
    assert abs(cell.metric - cell.full_precision) < 0.1
    assert "onnxruntime-int8" in report([cell])
    file = tmp_path / "results" / "sst2-onnxruntime-int8.json"
    before = file.stat().st_mtime_ns
    peers.main()
    assert file.stat().st_mtime_ns == before
    monkeypatch.setattr(peers, "OURS", [str(PEERS / "no-training.toml")])
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--ours"])
    peers.main()
    (ours,) = read_cells(tmp_path / "results" / "ours")
    assert (ours.method, ours.budget_counts, ours.recovery_steps) == ("no-training", "encoder", 0)
    assert ours.budget_bytes == cell.recipe["linear_bytes"]
