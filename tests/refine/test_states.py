"""Hidden states that are kept, and what a module learns from."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoquant.refine.states import HiddenStates, calibration_texts, make_lessons


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.randoms())
def test_what_is_put_comes_back(lengths: list[int], draw: Any) -> None:
    states, order = HiddenStates(lengths, 3), list(range(len(lengths)))
    hidden = [torch.randn(length, 3).half().float() for length in lengths]
    draw.shuffle(order)
    for start in range(0, len(order), 4):
        indices = np.array(order[start : start + 4])
        padded = torch.nn.utils.rnn.pad_sequence([hidden[i] for i in indices], batch_first=True, padding_value=7.0)
        states.put(indices, padded)
    indices = np.array(order[:5])
    expected = torch.nn.utils.rnn.pad_sequence([hidden[i] for i in indices], batch_first=True)
    assert torch.equal(states.batch(indices), expected)


def test_calibration_texts_are_drawn_without_labels(bench: Any) -> None:
    few = calibration_texts(bench.data, 50, seed=3)
    assert len(few) == 50
    assert not few.labels.any()
    known = {ids.tobytes() for ids in bench.data.ids}
    assert {ids.tobytes() for ids in few.ids} <= known
    again, other = calibration_texts(bench.data, 50, seed=3), calibration_texts(bench.data, 50, seed=4)
    assert [a.tolist() for a in again.ids] == [a.tolist() for a in few.ids] != [a.tolist() for a in other.ids]
    assert len(calibration_texts(bench.data, 10_000, seed=0)) == len(bench.data)


def test_lessons_are_the_teachers_states(bench: Any) -> None:
    with bench.open_context() as context:
        lessons = make_lessons(bench.teacher, bench.data, [(0, 1), (1, 2)], context.device, context.progress)
    indices = np.arange(0, 25, 5)  # of one length
    batch = bench.data.collate(indices)
    batch.pop("labels")
    with torch.no_grad():
        out = bench.teacher(**batch, output_hidden_states=True)
    assert lessons[0].start is None
    assert lessons[1].start is lessons[0].end
    for lesson, layer in zip(lessons, (1, 2), strict=True):
        torch.testing.assert_close(lesson.end.batch(indices), out.hidden_states[layer], atol=2e-3, rtol=1e-3)
    assert lessons[0].logits is None
    torch.testing.assert_close(lessons[1].logits[indices], out.logits)
