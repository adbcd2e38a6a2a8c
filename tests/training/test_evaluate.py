"""Logits come back in the order of the data, whatever the batches."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from autoquant.training.batches import Encoded
from autoquant.training.evaluate import predict_logits


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_logits_are_in_the_order_of_the_data(
    tiny_classifier: BertForSequenceClassification,
    encoded: Encoded,
    inputs: Callable[..., dict[str, torch.Tensor]],
    batch_size: int,
) -> None:
    some = encoded.select(np.arange(20))
    logits = predict_logits(tiny_classifier, some, batch_size)
    with torch.no_grad():
        alone = [tiny_classifier(**inputs([i])).logits[0].numpy() for i in range(20)]
    assert logits.shape == (20, 2)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, alone, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_predicting_and_back_after(
    tiny_classifier: BertForSequenceClassification, encoded: Encoded, training: bool
) -> None:
    some = encoded.select(np.arange(4))
    tiny_classifier.train(training)
    try:
        twice = [predict_logits(tiny_classifier, some) for _ in range(2)]
        assert tiny_classifier.training is training
    finally:
        tiny_classifier.eval()
    assert np.array_equal(*twice)
