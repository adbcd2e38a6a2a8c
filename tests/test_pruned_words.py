"""Whole runs whose words may be pruned: rare rows are zeros in the packed file and in the exported one."""

import re
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

import autoquant
from architectures import save_tiny
from autoquant import cli
from autoquant.export.manifest import manifest_allocation, read_manifest
from autoquant.pack.checkpoint import read_packed
from runs import rows_of, search, task

WORDS = "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A finished run so tight that words go."""
    folder = tmp_path_factory.mktemp("pruned")
    search(save_tiny("bert", folder / "tiny"), tiny_data, folder / "run", "--space", "pruned-words", "--budget-ratio", "9")
    return folder / "run"


def test_rare_words_are_zeros_and_frequent_ones_are_not(run: Path, tiny_data: Path) -> None:
    folder = run / "model"
    bits = manifest_allocation(read_manifest(folder / "allocation.json")).bits[WORDS]
    assert bits[-1] == 0  # the bucket of the rarest
    assert bits[0] > 0
    packed = read_packed(folder / "model.safetensors")
    table = AutoModelForSequenceClassification.from_pretrained(folder).get_input_embeddings().weight.detach().numpy()
    gone = (table == 0).all(axis=1)
    assert 0 < gone.sum() < len(table)
    np.testing.assert_array_equal(gone, packed.matrices[WORDS].layout.row_bits.numpy() == 0)
    texts = [text for text, _ in rows_of(tiny_data, 5)]
    assert np.isfinite(autoquant.load(folder).logits(texts)).all()


def test_the_exported_file_says_the_same(run: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["export", str(run), "--tail", "fp32", *task(run / "teacher", tiny_data)[2:]])
    found = re.search(r"Logits differ from the simulation by .* on average, (\S+) at most", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) < 1e-4
