"""Batches are a function of seed and step, lose nothing and repeat nothing, and pad as the model expects."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from autoquant.tasks.data import TextData
from autoquant.training.batches import BatchOrder, Encoded, encode


def made_of(lengths: list[int]) -> Encoded:
    """Sample i repeats the token i + 1."""
    ids = tuple(np.full(length, i + 1) for i, length in enumerate(lengths))
    return Encoded(ids, tuple(np.zeros_like(i) for i in ids), np.arange(len(ids)), pad_id=0)


def test_collate_pads_to_the_longest() -> None:
    data = Encoded(
        (np.array([5, 6, 7]), np.array([8]), np.array([9, 9])),
        (np.array([0, 1, 1]), np.array([0]), np.array([0, 1])),
        np.array([1, 0, 1]),
        pad_id=4,
    )
    batch = data.collate([2, 1])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[9, 9], [8, 4]],
        "token_type_ids": [[0, 1], [0, 0]],
        "attention_mask": [[1, 1], [1, 0]],
        "labels": [1, 0],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_padding_does_not_change_what_the_model_says(
    encoded: Encoded, inputs: Callable[..., dict[str, torch.Tensor]], tiny_classifier: torch.nn.Module
) -> None:
    assert len(encoded.ids[4]) < len(encoded.ids[5])
    with torch.no_grad():
        alone, beside = (tiny_classifier(**inputs(rows)).logits[0] for rows in ([4], [4, 5]))
    torch.testing.assert_close(alone, beside, atol=1e-6, rtol=1e-4)


def test_a_model_without_token_types_is_given_none() -> None:
    data = Encoded((np.array([5, 6]), np.array([7])), None, np.array([1, 0]), pad_id=1)
    both = data.select(np.array([1, 0])).joined(data)
    assert {name: tensor.tolist() for name, tensor in both.collate([0, 1]).items()} == {
        "input_ids": [[7, 1], [5, 6]],
        "attention_mask": [[1, 0], [1, 1]],
        "labels": [0, 1],
    }


def test_select_join_and_count() -> None:
    data = made_of([2, 1, 3])
    both = data.select(np.array([2, 0])).joined(data.select(np.array([1])))
    assert [ids.tolist() for ids in both.ids] == [[3, 3, 3], [1, 1], [2]]
    assert both.labels.tolist() == [2, 0, 1]
    assert both.token_counts(6).tolist() == [0, 2, 1, 3, 0, 0]


def test_by_length_gives_every_sample_once_shortest_first() -> None:
    batches = list(made_of([4, 1, 3, 1, 2]).by_length(2))
    assert [batch.tolist() for batch in batches] == [[1, 3], [4, 2], [0]]


def test_encode_cuts_long_texts_and_tells_pairs_apart(encoded: Encoded, tiny_classifier_dir: object) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(tiny_classifier_dir)
    data = TextData(("the film is great", "a film"), ("it was dull", "boring"), np.array([1, 0]))
    pairs = encode(tokenizer, data, 32)
    assert tokenizer.convert_ids_to_tokens(pairs.ids[1]) == ["[CLS]", "a", "film", "[SEP]", "boring", "[SEP]"]
    assert pairs.types[1].tolist() == [0, 0, 0, 0, 1, 1]
    assert pairs.pad_id == tokenizer.pad_token_id
    assert [len(ids) for ids in encode(tokenizer, data, 7).ids] == [7, 6]


lengths = st.lists(st.integers(1, 30), min_size=1, max_size=150)


@settings(deadline=None, max_examples=50)
@given(lengths, st.integers(1, 40), st.integers(0, 1000), st.data())
def test_a_batch_is_a_function_of_seed_and_step(sizes: list[int], batch_size: int, seed: int, data: st.DataObject) -> None:
    texts = made_of(sizes)
    in_turn = BatchOrder(texts, batch_size, seed)
    batches = [in_turn.indices(step) for step in range(3 * in_turn.batches_per_epoch)]
    step = data.draw(st.integers(0, len(batches) - 1))
    jumped = BatchOrder(texts, batch_size, seed)
    jumped.indices(data.draw(st.integers(0, len(batches) - 1)))
    assert jumped.indices(step).tolist() == batches[step].tolist()


@settings(deadline=None, max_examples=50)
@given(lengths, st.integers(1, 40), st.integers(0, 1000))
def test_every_sample_at_most_once_an_epoch(sizes: list[int], batch_size: int, seed: int) -> None:
    order = BatchOrder(made_of(sizes), batch_size, seed)
    size = min(batch_size, len(sizes))
    for epoch in range(2):
        steps = range(epoch * order.batches_per_epoch, (epoch + 1) * order.batches_per_epoch)
        drawn = [order.indices(step) for step in steps]
        assert {len(batch) for batch in drawn} == {size}
        samples = np.concatenate(drawn)
        assert len(set(samples.tolist())) == len(samples) > len(sizes) - size
        assert set(samples.tolist()) <= set(range(len(sizes)))


def test_epochs_and_seeds_differ() -> None:
    data = made_of([3] * 64)
    first, other = BatchOrder(data, 8, seed=0), BatchOrder(data, 8, seed=1)
    epochs = [np.concatenate([order.indices(e * 8 + i) for i in range(8)]).tolist() for order in (first, other) for e in (0, 1)]
    assert all(epochs[a] != epochs[b] for a in range(4) for b in range(a))


def test_batches_hold_texts_of_similar_length_in_no_order_of_length() -> None:
    sizes = np.random.default_rng(0).integers(1, 100, 32 * 16).tolist()
    order = BatchOrder(made_of(sizes), 16, seed=0)
    longest = [max(sizes[i] for i in order.indices(step)) for step in range(32)]
    padding = sum(16 * most for most in longest) / sum(sizes)
    assert padding < 1.1
    assert longest != sorted(longest)


@pytest.mark.parametrize("batch_size", [3, 100])
def test_a_batch_is_no_larger_than_the_data(batch_size: int) -> None:
    assert len(BatchOrder(made_of([1, 2, 3]), batch_size, 0).indices(5)) == 3
