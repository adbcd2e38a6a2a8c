import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoquant.core.schedule import SCHEDULES, cosine, exponential, linear, teacher_forcing, warmup_linear


def test_exponential_is_geometric() -> None:
    # from 1 to 1/16 in the four steps after step 2: each halves it
    values = [exponential(step, 1.0, 1 / 16, begin=2, total=6) for step in range(8)]
    assert values == pytest.approx([1, 1, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16])


def test_linear_is_a_line() -> None:
    assert [linear(step, 1.0, 0.2, begin=1, total=5) for step in range(7)] == pytest.approx([1, 1, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_cosine_is_half_a_period() -> None:
    expected = [2, 1 + math.cos(math.pi / 4), 1, 1 - math.cos(math.pi / 4), 0, 0]
    assert [cosine(step, 2.0, 0.0, begin=0, total=4) for step in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(begin=st.integers(0, 50), length=st.integers(1, 200), start=st.floats(0.1, 10), ratio=st.floats(0.01, 1))
def test_every_schedule_falls_from_start_to_end(name: str, begin: int, length: int, start: float, ratio: float) -> None:
    schedule, end, total = SCHEDULES[name], start * ratio, begin + length
    values = [schedule(step, start, end, begin, total) for step in range(total + 3)]
    assert values[: begin + 1] == pytest.approx([start] * (begin + 1))
    assert values[total:] == pytest.approx([end] * 3)
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(values))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_no_room_to_anneal_holds_the_start(name: str) -> None:
    assert SCHEDULES[name](9, 1.0, 0.1, begin=5, total=5) == 1.0


def test_warmup_linear() -> None:
    # two steps up, eight down
    values = [warmup_linear(step, 10, warmup=0.2) for step in range(11)]
    assert values == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0])
    assert warmup_linear(0, 1) == 1.0


def test_teacher_forcing() -> None:
    assert [teacher_forcing(step, 4) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert teacher_forcing(0, 0) == 0.0
