"""How good is a model? Logits over a data set, and the task's metrics."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from autoquant.training.batches import Encoded


@torch.no_grad()
def predict_logits(model: nn.Module, data: Encoded, batch_size: int = 32, device: torch.device | str = "cpu") -> np.ndarray:
    """Logits of every sample in its order, [samples, classes] float32; batches of similar length, in a fixed order."""
    was_training = model.training
    model.eval()
    result: np.ndarray | None = None
    for indices in data.by_length(batch_size):
        batch = data.collate(indices, device)
        batch.pop("labels")
        logits = model(**batch).logits.float().cpu().numpy()
        if result is None:
            result = np.empty((len(data), logits.shape[1]), dtype=np.float32)
        result[indices] = logits
    model.train(was_training)
    assert result is not None
    return result
