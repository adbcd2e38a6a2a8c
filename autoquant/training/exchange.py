"""More texts than there are: tokens exchanged for near ones. The teacher says what the answer is, so no label is needed.

After TinyBERT's data augmentation (Jiao et al. 2020, section 4.2 and algorithm 1), which takes words that BERT's language model
or GloVe finds near; here they are near by cosine in the teacher's own word embedding, and drawn anew in every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoquant.training.batches import Encoded

NEIGHBOURS = 10  # tokens of which one is drawn
ROWS = 256  # of the embedding, compared at once with all: 0.3 GB with the largest vocabularies


@torch.no_grad()
def near_tokens(embedding: Tensor, tokens: np.ndarray, special: tuple[int, ...]) -> Tensor:
    """The NEIGHBOURS nearest of each of `tokens` [n], ids [vocabulary, NEIGHBOURS] int64; every other token's are itself.

    embedding: [vocabulary, width]. None of the `special` ones is a neighbour; there are fewer columns if there are few tokens.
    """
    unit = functional.normalize(embedding.float(), dim=1)
    special = tuple(token for token in special if token < len(unit))  # a tokenizer may have more than its model
    count = min(NEIGHBOURS, len(unit) - len(special) - 1)
    near = torch.arange(len(unit), device=unit.device)[:, None].repeat(1, max(count, 1))
    if count < 1:
        return near
    for ids in torch.from_numpy(tokens).to(unit.device).split(ROWS):
        likeness = unit[ids] @ unit.T
        likeness[torch.arange(len(ids)), ids] = -torch.inf
        likeness[:, list(special)] = -torch.inf
        near[ids] = likeness.topk(count, dim=1).indices
    return near


@dataclass(frozen=True, eq=False)
class Exchange:
    """Exchanges a `share` of the tokens of a batch; `near` [vocabulary, neighbours]."""

    share: float
    near: Tensor

    @classmethod
    def among(cls, teacher: nn.Module, data: Encoded, share: float) -> Exchange:
        """For the tokens of `data`, special ones excepted."""
        embedding: Tensor = teacher.get_input_embeddings().weight  # type: ignore[operator]
        tokens = np.setdiff1d(np.flatnonzero(data.token_counts(len(embedding))), data.special_ids)
        return cls(share, near_tokens(embedding, tokens, data.special_ids))

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with other `input_ids`; torch's global generator draws, which every step seeds."""
        ids = batch["input_ids"]
        drawn = torch.rand(ids.shape, device=ids.device) < self.share
        other = torch.randint(self.near.shape[1], ids.shape, device=ids.device)
        return {**batch, "input_ids": torch.where(drawn, self.near[ids, other], ids)}
