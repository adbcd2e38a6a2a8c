"""Milliseconds by a clock that the test winds, and what the file is opened with."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from autoquant.export import EXPORTERS
from autoquant.export.base import Runner
from autoquant.pareto import latency
from autoquant.training.batches import Encoded


def test_the_median_over_texts_of_their_best_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    took = {0: [50, 5, 1, 5, 5, 5], 1: [50, 9, 9, 2, 9, 9], 2: [50, 90, 80, 70, 60, 10]}  # the first only warms up

    def run(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        now[0] += took[int(batch["text"])].pop(0) / 1000
        return np.zeros((1, 2))

    assert latency._milliseconds(run, [{"text": np.array(text)} for text in took]) == pytest.approx(2.0)
    assert not any(took.values())


def test_a_copy_is_exported_and_run_a_text_at_a_time_in_given_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, shapes = [], set()

    class Exporter:
        def check(self) -> None:
            asked.append("checked")

        def export(self, folder: Path) -> Path:
            assert (folder / "config.json").is_file()
            (folder / "exported").touch()
            return folder / "exported"

        def open(self, path: Path, threads: int = 0) -> Runner:
            asked.append(f"{path.name} in {threads} threads")
            return lambda batch: shapes.add(batch["input_ids"].shape) or np.zeros((1, 2))

    monkeypatch.setitem(EXPORTERS, latency.FORMAT, Exporter())  # type: ignore[arg-type]
    (tmp_path / "config.json").touch()
    texts = Encoded((np.arange(3), np.arange(5)), None, np.zeros(2, dtype=np.int64), pad_id=0)
    assert latency.latency_ms(tmp_path, texts, threads=3) > 0
    assert asked == ["checked", "exported in 3 threads"]
    assert shapes == {(1, 3), (1, 5)}
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
