"""Text -> batches. The batch of a step is a pure function of (seed, step), so a resumed run sees the same batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoquant.tasks.data import TextData

GROUP = 32  # batches whose samples are sorted by length together: little padding, still random


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokenised texts: one int64 array of token ids (and of token types, if the model has them) per sample, labels [samples]."""

    ids: tuple[np.ndarray, ...]
    types: tuple[np.ndarray, ...] | None
    labels: np.ndarray
    pad_id: int
    special_ids: tuple[int, ...] = ()
    """Tokens that are no text: padding, separators, the unknown."""

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: np.ndarray) -> Encoded:
        """The samples at `rows`, in that order."""
        types = None if self.types is None else tuple(self.types[i] for i in rows)
        return dataclasses.replace(self, ids=tuple(self.ids[i] for i in rows), types=types, labels=self.labels[rows])

    def joined(self, other: Encoded) -> Encoded:
        """These samples followed by `other`'s."""
        types = None if self.types is None or other.types is None else self.types + other.types
        labels = np.concatenate([self.labels, other.labels])
        return dataclasses.replace(self, ids=self.ids + other.ids, types=types, labels=labels)

    def collate(self, indices: Sequence[int] | np.ndarray, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """`input_ids`, `token_type_ids` (if there are any), `attention_mask` [batch, longest] and `labels` [batch]."""
        ids = [self.ids[i] for i in indices]
        batch = {"input_ids": _padded(ids, self.pad_id), "attention_mask": _padded([np.ones_like(i) for i in ids], 0)}
        if self.types is not None:
            batch["token_type_ids"] = _padded([self.types[i] for i in indices], 0)
        batch["labels"] = self.labels[indices]
        return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}

    def by_length(self, batch_size: int) -> Iterator[np.ndarray]:
        """Indices of all samples in batches of similar length, in a fixed order."""
        order = np.argsort([len(i) for i in self.ids], kind="stable")
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]

    def token_counts(self, vocabulary: int) -> np.ndarray:
        """Occurrences of every token id, [vocabulary] int64."""
        return np.bincount(np.concatenate(self.ids), minlength=vocabulary)


def _padded(arrays: Sequence[np.ndarray], value: int) -> np.ndarray:
    """Arrays of different lengths as one, [arrays, longest] int64, filled up with `value`."""
    result = np.full((len(arrays), max(map(len, arrays))), value, dtype=np.int64)
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array
    return result


def encode(tokenizer: Any, data: TextData, max_length: int) -> Encoded:
    """Tokenise; longer texts are cut at `max_length` tokens. Token types are there if the tokenizer gives them by itself."""
    second = None if data.second is None else list(data.second)
    out = tokenizer(list(data.first), second, truncation=True, max_length=max_length)
    types = out.get("token_type_ids")
    return Encoded(
        tuple(np.asarray(ids, dtype=np.int64) for ids in out["input_ids"]),
        None if types is None else tuple(np.asarray(row, dtype=np.int64) for row in types),
        data.labels,
        int(tokenizer.pad_token_id),
        tuple(sorted(tokenizer.all_special_ids)),
    )


def longest(data: Encoded) -> int:
    """Tokens of the longest text."""
    return max(map(len, data.ids))


class BatchOrder:
    """Which samples make up the batch of a step: shuffled every epoch, grouped by length."""

    def __init__(self, data: Encoded, batch_size: int, seed: int) -> None:
        self.data, self.batch_size, self.seed = data, min(batch_size, len(data)), seed
        self.lengths = np.array([len(ids) for ids in data.ids])
        self.batches_per_epoch = len(data) // self.batch_size
        self._epoch = -1
        self._order: list[np.ndarray] = []

    def indices(self, step: int) -> np.ndarray:
        """Sample indices of the batch of `step`, [batch]."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        return self._order[position]

    def _shuffle(self, epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(self.data))[: self.batches_per_epoch * self.batch_size]
        batches: list[np.ndarray] = []
        for start in range(0, len(order), GROUP * self.batch_size):
            group = order[start : start + GROUP * self.batch_size]
            group = group[np.argsort(self.lengths[group], kind="stable")]
            batches += np.split(group, len(group) // self.batch_size)
        return [batches[i] for i in random.permutation(len(batches))]
