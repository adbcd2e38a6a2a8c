"""Metrics against numbers worked out by hand."""

import math

import numpy as np
import pytest

from autoquant.core.errors import TrainingError
from autoquant.tasks.metrics import METRICS, score
from autoquant.tasks.task import TASKS

LABELS = np.array([1, 1, 1, 0, 0, 0, 0, 1])
ANSWERS = np.array([1, 1, 0, 0, 0, 1, 0, 1])  # 3 true positives, 3 true negatives, 1 false of each


def one_hot(answers: np.ndarray, classes: int = 2) -> np.ndarray:
    return np.eye(classes)[answers] * 4 - 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", 6 / 8),
        ("f1", 2 * 3 / (2 * 3 + 1 + 1)),
        ("matthews_correlation", (3 * 3 - 1 * 1) / math.sqrt(4 * 4 * 4 * 4)),
    ],
)
def test_classification_by_hand(name: str, expected: float) -> None:
    assert score([name], one_hot(ANSWERS), LABELS)[name] == pytest.approx(expected)


def test_three_classes() -> None:
    assert score(["accuracy"], one_hot(np.array([0, 1, 2, 2]), 3), np.array([0, 1, 2, 1])) == {"accuracy": 0.75}


def test_correlations_by_hand() -> None:
    # deviations (-1.5, -0.5, 0.5, 1.5) and (-1.5, -0.5, 1.5, 0.5): 2.25 + 0.25 + 0.75 + 0.75 = 4 over 5; ranks are the same
    result = score(["pearson", "spearmanr"], np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([1.0, 2.0, 4.0, 3.0]))
    assert result == pytest.approx({"pearson": 0.8, "spearmanr": 0.8})


def test_spearman_sees_order_only() -> None:
    result = score(["pearson", "spearmanr"], np.array([[1.0], [2.0], [3.0]]), np.array([1.0, 2.0, 100.0]))
    assert result["spearmanr"] == pytest.approx(1.0)
    assert result["pearson"] < 0.9


@pytest.mark.filterwarnings("error")
def test_constant_answers_score_zero_without_a_warning() -> None:
    constant = score(["pearson", "spearmanr"], np.full((4, 1), 2.5), np.array([1.0, 2.0, 3.0, 4.0]))
    assert constant == {"pearson": 0.0, "spearmanr": 0.0}
    negative = score(["matthews_correlation", "f1"], one_hot(np.zeros(4, dtype=int)), np.array([0, 1, 1, 0]))
    assert negative == {"matthews_correlation": 0.0, "f1": 0.0}


def test_one_row_is_no_correlation() -> None:
    assert score(["pearson"], np.array([[1.0]]), np.array([2.0])) == {"pearson": 0.0}


def test_logits_that_are_not_finite_are_refused() -> None:
    logits = np.array([[0.0, 1.0], [np.nan, np.nan], [np.inf, 0.0]])
    with pytest.raises(TrainingError, match="2 of 3 rows"):
        score(["accuracy"], logits, np.array([1, 0, 0]))


def test_tasks_are_judged_by_glue_s_metrics() -> None:
    found = {name: task.metrics for name, task in TASKS.items()}
    assert found.pop("cola") == ("matthews_correlation",)
    assert found.pop("stsb") == ("pearson", "spearmanr")
    assert found.pop("mrpc") == found.pop("qqp") == ("accuracy", "f1")
    assert set(found.values()) == {("accuracy",)}


def test_every_task_has_known_metrics() -> None:
    for task in TASKS.values():
        assert set(task.metrics) <= set(METRICS)
        assert task.metric == task.metrics[0]
        assert len(task.label_names) == (task.classes or 0)
