"""A packed model, ready to use: `autoquant.load(DIR).predict(texts)`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoquant.backbones import BACKBONES
from autoquant.backbones.load import load_tokenizer, quiet_transformers
from autoquant.core.errors import DataError, ModelError
from autoquant.pack.model import load_packed
from autoquant.tasks.data import TaskData
from autoquant.training.batches import Encoded, encode

Text = str | tuple[str, str]


class Predictor:
    """Model and tokenizer of a packed folder. `model` is a transformers classifier in eval mode."""

    def __init__(
        self, folder: str | Path, device: str = "cpu", memory: str = "unpacked", dtype: torch.dtype = torch.float32
    ) -> None:
        quiet_transformers()
        self.device = torch.device(device)
        self.model = load_packed(folder, memory, dtype).to(self.device)
        self.tokenizer: Any = load_tokenizer(str(folder), BACKBONES[self.model.config.model_type])
        settings = json.loads((Path(folder) / "config.json").read_text("utf-8"))["quantization_config"]
        self.max_length = self._checked_length(settings.get("max_length"), folder)
        self.labels: dict[int, str] = {int(i): str(name) for i, name in self.model.config.id2label.items()}
        if sorted(self.labels) != list(range(self.model.config.num_labels)):
            raise ModelError(f"{folder}/config.json does not name every class: copy the folder again.")

    def _checked_length(self, found: object, folder: str | Path) -> int:
        """Tokens that a text may have, as config.json says. Raises ModelError for what model and tokenizer cannot do."""
        config, fewest = self.model.config, self.tokenizer.num_special_tokens_to_add(pair=True) + 1
        positions = config.max_position_embeddings - BACKBONES[config.model_type].first_position(config)
        if not isinstance(found, int) or isinstance(found, bool) or not fewest <= found <= positions:
            raise ModelError(f"{folder}/config.json does not say how long texts may be ({found!r}): copy the folder again.")
        return found

    @torch.no_grad()
    def logits(self, texts: Iterable[Text], batch_size: int = 32) -> np.ndarray:
        """Raw outputs, [texts, classes] float32 (one column for regression). Raises DataError for what are no texts."""
        texts, parts = _text_list(texts), []
        if batch_size < 1:
            raise DataError(f"A batch size of {batch_size} is none: give 1 or more.")
        for start in range(0, len(texts), batch_size):
            chunk = texts[start : start + batch_size]
            columns = [list(column) for column in zip(*chunk, strict=True)] if isinstance(chunk[0], tuple) else [list(chunk)]
            batch = self.tokenizer(*columns, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
            parts.append(self.model(**batch.to(self.device)).logits.float().cpu().numpy())
        return np.concatenate(parts)

    def predict(self, texts: Iterable[Text], batch_size: int = 32) -> list[str] | list[float]:
        """The label of every text (pairs as tuples), or its value for a regression model."""
        logits = self.logits(texts, batch_size)
        if logits.shape[1] == 1:
            return [float(value) for value in logits[:, 0]]
        return [self.labels[int(index)] for index in logits.argmax(axis=1)]

    def evaluation(self, data: TaskData) -> Encoded:
        """The evaluation rows as this model reads them, their classes numbered as it numbers them.

        Raises DataError if it has another number of outputs than the data has classes.
        """
        outputs, here = self.model.config.num_labels, [name.lower() for name in data.label_names]
        if outputs != max(1, len(here)):
            raise DataError(f"The model has {outputs} outputs, the data has {max(1, len(here))}: give its own task.")
        encoded = encode(self.tokenizer, data.evaluation, self.max_length)
        there = [self.labels[index].lower() for index in range(outputs)]
        if here == there or sorted(here) != sorted(there):  # names such as LABEL_0 say nothing
            return encoded
        return dataclasses.replace(encoded, labels=np.array([there.index(name) for name in here])[encoded.labels])


def _text_list(texts: Iterable[Text]) -> list[Text]:
    """Any iterable of texts as a list: a slice of a pandas Series keeps the labels of its rows."""
    texts = [] if isinstance(texts, str) else list(texts)
    if not texts:
        raise DataError("predict takes a non-empty list of texts (or of pairs of texts).")
    single = all(isinstance(text, str) for text in texts)
    pairs = all(isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text) for text in texts)
    if not single and not pairs:
        raise DataError("predict takes strings, or tuples of two strings, and not both in one list.")
    return texts


def load(folder: str | Path, device: str = "cpu", memory: str = "unpacked", dtype: torch.dtype = torch.float32) -> Predictor:
    """Load a packed folder (`RUN/model`). Raises ModelError or CheckpointError in one line for anything else.

    `memory`: `unpacked` unpacks every weight once, `packed` at every use; `dtype`: that of the computation, say torch.bfloat16.
    """
    return Predictor(folder, device, memory, dtype)
