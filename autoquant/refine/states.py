"""What goes into a module and what should come out: hidden states of every calibration text at a module's boundary."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoquant.core.progress import Progress
from autoquant.training.batches import Encoded


class HiddenStates:
    """Hidden states of all texts at one place of the network: real tokens only, one after the other, in float16."""

    def __init__(self, lengths: Sequence[int], width: int) -> None:
        self.ends = np.cumsum(lengths)
        self.lengths = np.asarray(lengths)
        self.values = torch.empty(int(self.ends[-1]), width, dtype=torch.float16)

    def put(self, indices: np.ndarray, hidden: Tensor) -> None:
        """Keep `hidden` [batch, tokens, width] of the texts `indices`; what is beyond a text's length is padding."""
        hidden = hidden.half().cpu()
        for row, index in enumerate(indices):
            length, end = self.lengths[index], self.ends[index]
            self.values[end - length : end] = hidden[row, :length]

    def batch(self, indices: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """[batch, longest, width] float32 of the texts `indices`, padded with zeros."""
        longest = int(self.lengths[indices].max())
        hidden = torch.zeros(len(indices), longest, self.values.shape[1], dtype=torch.float16)
        for row, index in enumerate(indices):
            length, end = self.lengths[index], self.ends[index]
            hidden[row, :length] = self.values[end - length : end]
        return hidden.to(device).float()


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one module learns from, all of it the teacher's: its input (None for the first), its output, for the last logits too.

    `data` carries no labels worth the name: they are all zero.
    """

    data: Encoded
    start: HiddenStates | None
    end: HiddenStates
    logits: Tensor | None


def calibration_texts(data: Encoded, samples: int, seed: int) -> Encoded:
    """At most `samples` texts drawn by the seed, without their labels."""
    rows = np.random.default_rng((seed, 4)).permutation(len(data))[:samples]
    return dataclasses.replace(data.select(np.sort(rows)), labels=np.zeros(len(rows), dtype=np.int64))


@torch.no_grad()
def make_lessons(
    teacher: nn.Module, data: Encoded, ranges: Sequence[tuple[int, int]], device: torch.device, progress: Progress
) -> list[Lesson]:
    """One pass of the teacher over the texts, kept where modules of the layer `ranges` begin and end."""
    config: Any = teacher.config
    lengths = [len(ids) for ids in data.ids]
    states = {last: HiddenStates(lengths, config.hidden_size) for _, last in ranges}
    logits = torch.empty(len(data), config.num_labels)
    batches = list(data.by_length(64))
    with progress.stage("Teacher states", total=len(batches)) as bar:
        for indices in batches:
            batch = data.collate(indices, device)
            batch.pop("labels")
            out = teacher(**batch, output_hidden_states=True)
            logits[indices] = out.logits.float().cpu()
            for boundary, kept in states.items():
                kept.put(indices, out.hidden_states[boundary])
            bar.advance()
    last = ranges[-1][1]
    return [Lesson(data, states.get(a) if a else None, states[b], logits if b == last else None) for a, b in ranges]
