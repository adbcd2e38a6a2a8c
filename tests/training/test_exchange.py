"""Neighbours by hand; and what an exchange may touch, and what not."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from autoquant.training import exchange as module
from autoquant.training.batches import Encoded
from autoquant.training.exchange import NEIGHBOURS, Exchange, near_tokens


def test_neighbours_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEIGHBOURS", 2)
    angles = torch.tensor([0.0, 10.0, 25.0, 90.0, 110.0, 5.0]).deg2rad()
    lengths = torch.tensor([1.0, 9.0, 0.1, 2.0, 1.0, 1.0])  # which do not count
    embedding = torch.stack([angles.cos(), angles.sin()], dim=1) * lengths[:, None]
    near = near_tokens(embedding, np.array([0, 1, 3]), special=(5,))
    assert near.tolist() == [[1, 2], [0, 2], [2, 2], [4, 2], [4, 4], [5, 5]]  # 2, 4 and 5 were not asked for


def test_rows_at_once_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    whole = near_tokens(embedding, np.arange(3, 50), (0, 1, 2))
    monkeypatch.setattr(module, "ROWS", 7)
    assert torch.equal(near_tokens(embedding, np.arange(3, 50), (0, 1, 2)), whole)
    assert whole.shape == (50, NEIGHBOURS)


def test_a_vocabulary_of_one_word_has_no_neighbours() -> None:
    assert near_tokens(torch.ones(3, 4), np.array([2]), (0, 1)).tolist() == [[0], [1], [2]]


def test_only_words_are_exchanged(tiny_classifier: Any, encoded: Encoded) -> None:
    assert set(encoded.special_ids) == {0, 1, 2, 3, 4}
    batch = encoded.collate(np.arange(64))
    torch.manual_seed(0)
    other = Exchange.among(tiny_classifier, encoded, 0.3)(batch)
    assert all(other[name] is tensor for name, tensor in batch.items() if name != "input_ids")
    ids, new = batch["input_ids"], other["input_ids"]
    special = torch.isin(ids, torch.tensor(encoded.special_ids))
    assert torch.equal(new[special], ids[special])
    assert not torch.isin(new[~special], torch.tensor(encoded.special_ids)).any()
    assert 0.25 < (new != ids)[~special].float().mean() < 0.35


def test_shares_of_none_and_all(tiny_classifier: Any, encoded: Encoded) -> None:
    batch = encoded.collate(np.arange(8))
    near = near_tokens(tiny_classifier.get_input_embeddings().weight, np.arange(5, 200), encoded.special_ids)
    assert torch.equal(Exchange(0.0, near)(batch)["input_ids"], batch["input_ids"])
    every = Exchange(1.0, near)(batch)["input_ids"]
    assert torch.equal(every == batch["input_ids"], batch["input_ids"] < 5)


def test_the_seed_of_a_step_says_what_is_exchanged(tiny_classifier: Any, encoded: Encoded) -> None:
    exchange, batch = Exchange.among(copy.deepcopy(tiny_classifier), encoded, 0.3), encoded.collate(np.arange(8))
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(exchange(batch)["input_ids"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
