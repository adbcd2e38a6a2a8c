"""A packed model, ready to use: `autoquant.load(DIR).predict(texts)`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
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
        if not isinstance(settings.get("max_length"), int):
            raise ModelError(f"{folder}/config.json does not say how long texts may be: copy the folder again.")
        self.max_length: int = settings["max_length"]
        self.labels: dict[int, str] = {int(i): str(name) for i, name in self.model.config.id2label.items()}

    @torch.no_grad()
    def logits(self, texts: Sequence[Text], batch_size: int = 32) -> np.ndarray:
        """Raw outputs, [texts, classes] float32 (one column for regression)."""
        _check_texts(texts)
        texts, parts = list(texts), []  # a slice of a pandas Series keeps the labels of its rows
        for start in range(0, len(texts), batch_size):
            chunk = texts[start : start + batch_size]
            columns = [list(column) for column in zip(*chunk, strict=True)] if isinstance(chunk[0], tuple) else [list(chunk)]
            batch = self.tokenizer(*columns, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
            parts.append(self.model(**batch.to(self.device)).logits.float().cpu().numpy())
        return np.concatenate(parts)

    def predict(self, texts: Sequence[Text], batch_size: int = 32) -> list[str] | list[float]:
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


def _check_texts(texts: Sequence[Text]) -> None:
    if isinstance(texts, str) or not len(texts):
        raise DataError("predict takes a non-empty list of texts (or of pairs of texts).")
    single = all(isinstance(text, str) for text in texts)
    pairs = all(isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text) for text in texts)
    if not single and not pairs:
        raise DataError("predict takes strings, or tuples of two strings, and not both in one list.")


def load(folder: str | Path, device: str = "cpu", memory: str = "unpacked", dtype: torch.dtype = torch.float32) -> Predictor:
    """Load a packed folder (`RUN/model`). Raises ModelError or CheckpointError in one line for anything else.

    `memory`: `unpacked` unpacks every weight once, `packed` at every use; `dtype`: that of the computation, say torch.bfloat16.
    """
    return Predictor(folder, device, memory, dtype)
