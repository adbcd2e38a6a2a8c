"""One tiny BERT and one tiny task, made on the spot: real files, no network, the same ones for every test."""

import os
import random
import signal
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from autoquant.reports.results import Sweep
from sweeps import small_sweep

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite started in the background is born with Ctrl-C ignored

words = str.split
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SUBJECTS = words("film movie story plot acting cast script music ending scene camera director dialogue comedy drama hero")
GOOD = words("great wonderful funny moving brilliant charming fresh clever warm superb lovely rich")
BAD = words("awful boring dull messy tired clumsy stale silly cold terrible bland poor")
FILLER = words("the a is was and but very quite rather really it this that with of in seems feels looks remains")
LETTERS = [prefix + letter for prefix in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz"]
VOCABULARY = list(dict.fromkeys([*SPECIAL, *SUBJECTS, *GOOD, *BAD, *FILLER, *LETTERS, *".,!?-'0123456789"]))
TRAIN_ROWS, DEV_ROWS = 320, 80


def tiny_config() -> BertConfig:
    return BertConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=2,
    )


def sentences(count: int) -> list[tuple[str, int]]:
    """Different short reviews whose adjectives give the label away; labels alternate."""
    draw = random.Random(0)
    found: dict[str, int] = {}
    while len(found) < count:
        label = len(found) % 2
        first, second = draw.sample(GOOD if label else BAD, 2)
        a, b = draw.sample(SUBJECTS, 2)
        verb, adverb = draw.choice(["is", "was", "seems", "feels"]), draw.choice(["very", "quite", "rather", "really"])
        found[f"the {a} {verb} {adverb} {first} and this {b} {verb} {second}"] = label
    return list(found.items())


def save_tokenizer(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_classifier() -> BertForSequenceClassification:
    """A classifier with random weights of a fixed seed; do not change it, copy it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(tiny_config()).eval()


@pytest.fixture(scope="session")
def tiny_classifier_dir(tiny_classifier: BertForSequenceClassification, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved classifier with two labels, and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_classifier")
    tiny_classifier.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model_dir(tiny_classifier: BertForSequenceClassification, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same encoder saved bare (BertModel), and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tiny_classifier.bert.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as GLUE: SST-2/train.tsv (320 rows) and SST-2/dev.tsv (80 rows), learnable."""
    root = tmp_path_factory.mktemp("glue")
    task = root / "SST-2"
    task.mkdir()
    rows = [f"{text}\t{label}" for text, label in sentences(TRAIN_ROWS + DEV_ROWS)]
    for name, part in (("train.tsv", rows[:TRAIN_ROWS]), ("dev.tsv", rows[TRAIN_ROWS:])):
        (task / name).write_text("\n".join(["sentence\tlabel", *part]) + "\n", "utf-8")
    return root


@pytest.fixture
def sweep() -> Sweep:
    """A sweep made of plain values."""
    return small_sweep()
