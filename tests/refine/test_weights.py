"""Weights in the place of others: seen by every matrix of the space, and gone afterwards."""

from typing import Any

import torch

from autoquant.refine.weights import replaced_weights


def test_every_matrix_is_asked_and_the_old_weights_come_back(bench: Any) -> None:
    supernet, asked = bench.supernet(), {}
    batch = bench.data.collate([0, 1])
    batch.pop("labels")

    def latent(name: str, quantised: torch.Tensor, clean: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        assert quantised.shape == clean.shape
        asked[name] = rows is not None
        return clean

    with torch.no_grad():
        before = supernet(**batch).logits
        with replaced_weights(supernet, latent):
            clean = supernet(**batch).logits
        after = supernet(**batch).logits
    assert asked == {name: "embeddings" in name for name, _ in supernet.mixed_weights()}
    assert torch.equal(before, after)
    assert not torch.equal(before, clean)
