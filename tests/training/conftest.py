"""Tokenised texts of the tiny task, and contexts whose run directories can be opened again."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from autoquant.core.progress import SilentProgress
from autoquant.core.run import RunDirectory
from autoquant.tasks.load import load_glue
from autoquant.training.batches import Encoded, encode
from autoquant.training.loop import Context

ContextOpener = Callable[..., AbstractContextManager[Context]]


@pytest.fixture(scope="session")
def encoded(tiny_classifier_dir: Path, tiny_data: Path) -> Encoded:
    """The training file, 320 texts, of which the tail is cut off so that they differ in length (8 to 12 tokens)."""
    data = encode(AutoTokenizer.from_pretrained(tiny_classifier_dir), load_glue("sst2", tiny_data).train, 32)
    cut = [12 - index % 5 for index in range(len(data))]
    ids, types = (tuple(a[:n] for a, n in zip(arrays, cut, strict=True)) for arrays in (data.ids, data.types))
    return dataclasses.replace(data, ids=ids, types=types)


@pytest.fixture(scope="session")
def inputs(encoded: Encoded) -> Callable[..., dict[str, torch.Tensor]]:
    """`inputs(rows)`: their batch without labels, at which transformers would note the kind of task in the shared model."""

    def collate(rows: Sequence[int]) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in encoded.collate(rows).items() if name != "labels"}

    return collate


@pytest.fixture
def open_context(tmp_path: Path) -> ContextOpener:
    """`with open_context(name, checkpoint_seconds=...) as context`; the same name goes on with the same run."""

    @contextmanager
    def open_(name: str = "run", **changes: float) -> Iterator[Context]:
        with RunDirectory.open(tmp_path / name, {}, resume=True) as run:
            yield Context(run, SilentProgress(), torch.device("cpu"), seed=0, **changes)

    return open_
