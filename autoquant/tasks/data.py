"""What is the data? Texts and labels as values; rows are chosen by a hash of their text, never by luck or file order."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoquant.core.errors import DataError
from autoquant.tasks.task import Task

TUNING_SHARE, TUNING_SALT = 0.2, "tune"


@dataclass(frozen=True, eq=False)
class TextData:
    """Rows of one text or a pair of texts with their labels.

    `first` [rows]; `second` [rows] or None; `labels` [rows] int64 class indices or float64 values.
    Raises DataError if the lengths differ.
    """

    first: tuple[str, ...]
    second: tuple[str, ...] | None
    labels: np.ndarray

    def __post_init__(self) -> None:
        lengths = {len(self.first), len(self.labels)} | ({len(self.second)} if self.second is not None else set())
        if len(lengths) > 1:
            raise DataError(f"Texts and labels differ in number: {sorted(lengths)}; give one label for every text.")

    def __len__(self) -> int:
        return len(self.first)

    def select(self, indices: Sequence[int] | np.ndarray) -> TextData:
        """The rows at `indices`, in that order."""
        rows = [int(index) for index in indices]
        second = None if self.second is None else tuple(self.second[row] for row in rows)
        return TextData(tuple(self.first[row] for row in rows), second, self.labels[rows])

    def sha256(self) -> str:
        """Hash of every text and label in order, in hexadecimal."""
        digest = hashlib.sha256()
        for text, label in zip(self._row_texts(), self.labels.tolist(), strict=True):
            digest.update(f"{text}\x1f{label!r}\x1e".encode())
        return digest.hexdigest()

    def text_hashes(self) -> tuple[str, ...]:
        """sha256 in hexadecimal of each row's texts, a pair joined by "\\x1f"."""
        return self._keys("")

    def subsample(self, count: int) -> TextData:
        """The `count` rows with the smallest hash of the text, smallest first (equal texts in the order of the file).

        A smaller subsample is a prefix of a larger one. All rows if there are no more than `count`; DataError below 1.
        """
        if count < 1:
            raise DataError(f"A subsample of {count} rows is empty: ask for 1 to {len(self)}.")
        hashes = self.text_hashes()
        return self.select(sorted(range(len(self)), key=hashes.__getitem__)[:count])

    def split(self, share: float, salt: str = "split") -> tuple[TextData, TextData]:
        """(what is kept, what is held out), each in the order of the file; about `share` (0 to 1) of the rows are held out.

        Rows are ordered by sha256(salt + "\\x1f" + text), so equal texts stay together, and a split says nothing about a
        subsample. Raises DataError if a part would be empty.
        """
        keys = self._keys(f"{salt}\x1f")
        if not 0 < share < 1 or len(set(keys)) < 2:
            raise DataError(f"Cannot hold out {share:.0%} of {len(self)} rows: give a share within 0 and 1 of two or more texts.")
        ordered = sorted(keys)
        last = ordered[max(round(share * len(keys)), 1) - 1]
        # something must be kept, even when the last text is repeated so often that it reaches into the share
        held = np.array([key <= last if last < ordered[-1] else key < last for key in keys])
        return self.select(np.flatnonzero(~held)), self.select(np.flatnonzero(held))

    def _row_texts(self) -> tuple[str, ...]:
        if self.second is None:
            return self.first
        return tuple(f"{a}\x1f{b}" for a, b in zip(self.first, self.second, strict=True))

    def _keys(self, prefix: str) -> tuple[str, ...]:
        return tuple(hashlib.sha256((prefix + text).encode()).hexdigest() for text in self._row_texts())


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task with its training and evaluation rows; `label_names` name the classes (empty for regression)."""

    task: Task
    train: TextData
    evaluation: TextData
    label_names: tuple[str, ...]
    unlabelled: TextData | None = None
    """Further texts, whose labels mean nothing: recovery learns the teacher's answers to them too."""
    source: Mapping[str, Any] | None = None
    """Command-line options that load it, by field, as JSON values; None for data that did not come from there."""
    tuning: bool = False
    """Whether the evaluation rows are a part of the training file, by which settings are chosen."""

    def hashes(self) -> dict[str, str]:
        """sha256 of "train", "evaluation" and, where there are further texts, "unlabelled"."""
        parts = {"train": self.train, "evaluation": self.evaluation, "unlabelled": self.unlabelled}
        return {name: part.sha256() for name, part in parts.items() if part is not None}

    def for_tuning(self) -> TaskData:
        """The training file alone: a fifth of it, by hash of the text, stands in for the evaluation file."""
        kept, held_out = self.train.split(TUNING_SHARE, TUNING_SALT)
        return dataclasses.replace(self, train=kept, evaluation=held_out, tuning=True)

    def as_recorded(self, hashes: Mapping[str, str]) -> TaskData:
        """This data, or its part for tuning where the recorded sha256 of "train" and "evaluation" are those of that part."""
        if self.evaluation.sha256() == hashes.get("evaluation"):
            return self
        part = self.for_tuning()
        same = (part.train.sha256(), part.evaluation.sha256()) == (hashes.get("train"), hashes.get("evaluation"))
        return part if same else self
