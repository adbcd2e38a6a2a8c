"""A tiny classifier of every architecture: random weights of a fixed seed, a vocabulary of its own, saved as a real folder."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    DistilBertTokenizer,
    PreTrainedConfig,
    RobertaConfig,
    RobertaTokenizer,
)

from conftest import VOCABULARY, save_tokenizer, sentences, tiny_config

POSITIONS = 64  # tokens that every one of them can read


def distilbert_config() -> DistilBertConfig:
    return DistilBertConfig(
        vocab_size=200, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=POSITIONS, num_labels=2
    )


def roberta_config() -> RobertaConfig:
    """Two rows more than positions: the padding token's id is 1, and the first token's position the one after it."""
    return RobertaConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=POSITIONS + 2,
        type_vocab_size=1,
        num_labels=2,
    )


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "bert": lambda: BertConfig.from_dict(tiny_config().to_dict()),
    "distilbert": distilbert_config,
    "roberta": roberta_config,
}


def tiny(model_type: str, outputs: int = 2) -> torch.nn.Module:
    """The classifier, in eval mode."""
    config = CONFIGS[model_type]()
    config.num_labels = outputs
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config).eval()


def save_tiny(model_type: str, folder: Path) -> Path:
    """Classifier and tokenizer, as a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny(model_type).save_pretrained(folder)
    if model_type == "bert":
        save_tokenizer(folder)
    elif model_type == "distilbert":
        vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
        DistilBertTokenizer(vocab=vocabulary, model_max_length=POSITIONS).save_pretrained(folder)
    else:
        learned = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        learned.train_from_iterator([text for text, _ in sentences(400)], vocab_size=400, special_tokens=special)
        model = json.loads(learned.to_str())["model"]
        merges = [tuple(merge) for merge in model["merges"]]
        RobertaTokenizer(vocab=model["vocab"], merges=merges, model_max_length=POSITIONS).save_pretrained(folder)
    return folder
