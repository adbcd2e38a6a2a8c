"""A packed folder in use: labels, pairs, values, and what it refuses."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import autoquant
from autoquant.core.errors import CheckpointError, DataError, ModelError
from autoquant.inference import Predictor
from autoquant.pipeline import evaluate_folder
from autoquant.tasks.load import from_rows
from runs import Reference, reference, rows_of, search

__all__ = ["reference"]


@pytest.fixture(scope="module")
def predictor(reference: Reference) -> Predictor:
    return autoquant.load(reference.model_dir)


@pytest.fixture
def copy(reference: Reference, tmp_path: Path) -> Path:
    """A packed folder that may be harmed."""
    return Path(shutil.copytree(reference.model_dir, tmp_path / "model"))


def test_labels_are_the_tasks_names(predictor: Predictor) -> None:
    texts = ["the film was very great and this plot is lovely", "the film was very awful and this plot is dull"]
    assert predictor.predict(texts) == ["positive", "negative"]
    assert predictor.labels == {0: "negative", 1: "positive"}
    assert predictor.max_length == 32


def test_predictions_reach_the_reported_accuracy(predictor: Predictor, reference: Reference) -> None:
    rows = rows_of(reference.data, 320)
    predicted = predictor.predict([text for text, _ in rows])
    right = [name == ("negative", "positive")[label] for name, (_, label) in zip(predicted, rows, strict=True)]
    assert np.mean(right) > 0.9


def test_answers_come_in_the_order_of_the_texts(tiny_classifier_dir: Path, tiny_data: Path, tmp_path: Path) -> None:
    """With activations left alone a text's logits do not depend on its batch (8-bit ranges are a batch's)."""
    search(tiny_classifier_dir, tiny_data, tmp_path / "run", "--activation-bits", 32)
    predictor = autoquant.load(tmp_path / "run" / "model")
    texts = ["the film", "a long story about the director and this camera and the ending", "dull"] * 3
    logits = predictor.logits(texts, batch_size=2)
    assert logits.shape == (9, 2)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, predictor.logits(texts, batch_size=64), atol=1e-5)
    np.testing.assert_allclose(logits, np.concatenate([predictor.logits([text]) for text in texts]), atol=1e-5)


def test_a_column_of_a_table_is_a_list_of_texts(predictor: Predictor) -> None:
    texts = [f"the film was {word}" for word in ("great", "awful", "dull")]
    column = pd.Series(texts, index=[7, 5, 3])
    np.testing.assert_array_equal(predictor.logits(column, batch_size=2), predictor.logits(texts, batch_size=2))


def test_texts_may_come_one_after_the_other(predictor: Predictor) -> None:
    texts = ["the film was great", "the film was awful"]
    assert predictor.predict(iter(texts)) == predictor.predict(texts)
    with pytest.raises(DataError, match="batch size of 0"):
        predictor.predict(texts, batch_size=0)


def test_classes_in_another_order_are_the_same_classes(predictor: Predictor, reference: Reference) -> None:
    """Numbers are names in their own order; the model's order is negative, positive."""
    names = {0: "negative", 1: "positive"}
    rows = [(text, names[label]) for text, label in rows_of(reference.data, 60)]
    data = from_rows(rows, rows)
    evaluation = dataclasses.replace(data.evaluation, labels=1 - data.evaluation.labels)
    turned = dataclasses.replace(data, label_names=tuple(reversed(data.label_names)), evaluation=evaluation)
    assert evaluate_folder(reference.model_dir, turned) == evaluate_folder(reference.model_dir, data)
    assert predictor.evaluation(turned).labels.tolist() == data.evaluation.labels.tolist()
    with pytest.raises(DataError, match="The model has 2 outputs, the data has 3"):
        predictor.evaluation(dataclasses.replace(data, label_names=("a", "b", "c")))


def test_long_texts_are_cut(predictor: Predictor) -> None:
    long = "great " * 500
    np.testing.assert_array_equal(predictor.logits([long]), predictor.logits([long + "awful"]))


def test_pairs_are_two_segments(predictor: Predictor) -> None:
    pair = predictor.logits([("the film", "the plot")])
    assert np.abs(pair - predictor.logits([("the plot", "the film")])).max() > 0
    assert np.abs(pair - predictor.logits(["the film"])).max() > 0


def test_the_model_is_frozen_and_does_not_drop_out(predictor: Predictor) -> None:
    assert not predictor.model.training
    assert not any(parameter.requires_grad for parameter in predictor.model.parameters())
    np.testing.assert_array_equal(predictor.logits(["the film"]), predictor.logits(["the film"]))


@pytest.mark.parametrize(
    "texts", [[], "one text", [1], [None], [("a", "b", "c")], [("only one",)], ["a", ("b", "c")], [["a", "b"]], [("a", 1)]]
)
def test_what_is_no_list_of_texts_is_refused(predictor: Predictor, texts: object) -> None:
    with pytest.raises(DataError, match="predict takes"):
        predictor.predict(texts)


def test_folders_that_are_not_packed(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="missing"):
        autoquant.load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="is not that of a packed model"):
        autoquant.load(tiny_model_dir)


def test_a_missing_or_damaged_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="damaged or incomplete"):
        autoquant.load(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no vocabulary"):
        autoquant.load(copy)


@pytest.mark.parametrize("length", [None, -3, 0, 1, True, 3, 65, 100_000, "32"])
def test_a_maximum_length_that_is_none(copy: Path, length: object) -> None:
    """Of 64 positions; two texts and their special tokens are four at least."""
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config["quantization_config"]["max_length"] = length
    (copy / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match="how long texts may be"):
        autoquant.load(copy)


def test_classes_that_are_not_all_named(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config["id2label"] = {"1": "negative", "5": "positive"}
    (copy / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match="does not name every class"):
        autoquant.load(copy)


def test_a_damaged_file(copy: Path) -> None:
    raw = bytearray((copy / "model.safetensors").read_bytes())
    raw[-100] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(raw))
    with pytest.raises(CheckpointError, match="checksum"):
        autoquant.load(copy)
