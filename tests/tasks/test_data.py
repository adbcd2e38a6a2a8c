"""Rows are chosen by their text alone."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoquant.core.errors import DataError
from autoquant.tasks.data import TaskData, TextData
from autoquant.tasks.task import MOVIES

texts = st.lists(st.text(max_size=6), min_size=1, max_size=60)
shares = st.floats(0.05, 0.95)


def rows(first: list[str], second: list[str] | None = None) -> TextData:
    return TextData(tuple(first), None if second is None else tuple(second), np.arange(len(first)))


def test_hashes_are_sha256_of_the_texts() -> None:
    assert rows(["good"]).text_hashes() == (hashlib.sha256(b"good").hexdigest(),)
    assert rows(["a"], ["b"]).text_hashes() == (hashlib.sha256(b"a\x1fb").hexdigest(),)


def test_the_part_for_tuning_is_found_again_by_its_hashes() -> None:
    data = TaskData(MOVIES, rows([f"t{i}" for i in range(50)]), rows(["a", "b"]), ("no", "yes"))
    part = data.for_tuning()
    assert part.tuning
    assert len(part.train) + len(part.evaluation) == 50
    assert not set(part.train.first) & set(part.evaluation.first)
    recorded = {"train": part.train.sha256(), "evaluation": part.evaluation.sha256(), "teacher": "x"}
    assert data.as_recorded(recorded).evaluation.first == part.evaluation.first
    assert data.as_recorded({"train": data.train.sha256(), "evaluation": data.evaluation.sha256()}) is data
    assert data.as_recorded({**recorded, "train": "other"}) is data


def test_lengths_must_agree() -> None:
    with pytest.raises(DataError, match=r"\[2, 3\]"):
        TextData(("a", "b"), None, np.zeros(3, dtype=np.int64))


def test_select_keeps_rows_together() -> None:
    part = rows(["a", "b", "c"], ["x", "y", "z"]).select([2, 0])
    assert (part.first, part.second, part.labels.tolist()) == (("c", "a"), ("z", "x"), [2, 0])


def test_sha256_sees_texts_labels_and_order() -> None:
    data = rows(["a", "b"])
    others = [
        rows(["a", "c"]),
        rows(["b", "a"]),
        rows(["a", "b"], ["", ""]),
        TextData(("a", "b"), None, np.array([0, 2])),
        TextData(("a", "b"), None, np.array([0.0, 1.0])),
    ]
    assert data.sha256() == rows(["a", "b"]).sha256()
    assert len({data.sha256(), *(other.sha256() for other in others)}) == 6


@given(texts, st.integers(1, 70))
def test_subsample_has_the_smallest_hashes(first: list[str], count: int) -> None:
    data = rows(first)
    sample = data.subsample(count)
    everything = sorted((digest, index) for index, digest in enumerate(data.text_hashes()))
    assert sample.labels.tolist() == [index for _, index in everything[:count]]


@given(texts, st.randoms())
def test_subsample_does_not_depend_on_file_order(first: list[str], random: object) -> None:
    shuffled = list(first)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert rows(first).subsample(5).first == rows(shuffled).subsample(5).first


def test_an_empty_subsample_is_refused() -> None:
    with pytest.raises(DataError, match="subsample of 0 rows"):
        rows(["a"]).subsample(0)


@given(texts, shares)
def test_split_partitions_and_never_straddles(first: list[str], share: float) -> None:
    data = rows(first)
    if len(set(first)) < 2:
        with pytest.raises(DataError, match="Cannot hold out"):
            data.split(share)
        return
    kept, held = data.split(share)
    assert sorted([*kept.labels, *held.labels]) == list(range(len(first)))
    assert len(kept)
    assert len(held)
    assert not set(kept.first) & set(held.first)
    assert [part.labels.tolist() for part in (kept, held)] == [sorted(part.labels) for part in (kept, held)]


@given(st.integers(2, 300), shares)
def test_split_holds_out_its_share_of_different_texts(count: int, share: float) -> None:
    _, held = rows([str(i) for i in range(count)]).split(share)
    assert len(held) == min(max(round(share * count), 1), count - 1)


def test_splits_of_different_salts_and_subsamples_are_unrelated() -> None:
    data = rows([f"text {i}" for i in range(2000)])
    _, held = data.split(0.2)
    _, other = data.split(0.2, salt="evaluation")
    for part in (other, data.subsample(400)):
        assert len(set(held.first) & set(part.first)) == pytest.approx(80, abs=30)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_that_empties_a_part_is_refused(share: float) -> None:
    with pytest.raises(DataError, match="Cannot hold out"):
        rows(["a", "b", "c"]).split(share)


def test_split_is_pinned() -> None:
    """The same rows on every machine and in every release: results depend on it."""
    _, held = rows([str(i) for i in range(20)]).split(0.25)
    by_hand = sorted(range(20), key=lambda i: hashlib.sha256(f"split\x1f{i}".encode()).hexdigest())[:5]
    assert held.labels.tolist() == sorted(by_hand)
