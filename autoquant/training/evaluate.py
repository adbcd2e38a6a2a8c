"""How good is a model? Logits over a data set, and the task's metrics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from autoquant.training.batches import Encoded, longest
from autoquant.training.products import fast_products


@torch.no_grad()
def predict_logits(model: nn.Module, data: Encoded, batch_size: int = 32, device: torch.device | str = "cpu") -> np.ndarray:
    """Logits of every sample in its order, [samples, classes] float32; batches of similar length, in a fixed order."""
    was_training = model.training
    model.eval()
    logits = collect_logits(lambda batch: model(**batch).logits.float().cpu().numpy(), data, batch_size, device)
    model.train(was_training)
    return logits


def collect_logits(
    compute: Callable[[dict[str, Tensor]], np.ndarray],
    data: Encoded,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """The same of whatever computes logits [batch, classes] from a batch without its labels."""
    result: np.ndarray | None = None
    for indices in data.by_length(batch_size):
        batch = data.collate(indices, device)
        batch.pop("labels")
        with fast_products(device, longest(data)):
            logits = compute(batch)
        if result is None:
            result = np.empty((len(data), logits.shape[1]), dtype=np.float32)
        result[indices] = logits
    assert result is not None
    return result
