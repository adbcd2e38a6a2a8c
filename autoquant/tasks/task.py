"""What is a task? Its columns, its number of classes and what a good answer is: one row a task."""

from __future__ import annotations

from dataclasses import dataclass

GLUE_HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class Task:
    """One or two texts in, a class or a number out.

    `classes` is None for regression; `metric` is the primary one of `metrics` (names of `autoquant.tasks.metrics.METRICS`);
    `label_names` name the classes in the order of their indices; `hub_config` is the configuration of `nyu-mll/glue` and
    `evaluation` its split to evaluate on, both only of use to GLUE.
    """

    name: str
    text_columns: tuple[str, ...]
    label_column: str
    classes: int | None
    metric: str
    metrics: tuple[str, ...]
    label_names: tuple[str, ...] = ()
    hub_config: str | None = None
    evaluation: str = "validation"


ACCURACY = ("accuracy",)
ACCURACY_F1 = ("accuracy", "f1")
MATTHEWS = ("matthews_correlation",)
CORRELATIONS = ("pearson", "spearmanr")

ONE = ("sentence",)
PAIR = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")

ENTAILS = ("entailment", "not_entailment")
NLI = ("entailment", "neutral", "contradiction")

# Columns, class order and metrics as on the hub (Wang et al. 2019, GLUE).
TASKS: dict[str, Task] = {
    "sst2": Task("sst2", ONE, "label", 2, "accuracy", ACCURACY, ("negative", "positive"), "sst2"),
    "cola": Task("cola", ONE, "label", 2, "matthews_correlation", MATTHEWS, ("unacceptable", "acceptable"), "cola"),
    "mrpc": Task("mrpc", PAIR, "label", 2, "accuracy", ACCURACY_F1, ("not_equivalent", "equivalent"), "mrpc"),
    "rte": Task("rte", PAIR, "label", 2, "accuracy", ACCURACY, ENTAILS, "rte"),
    "stsb": Task("stsb", PAIR, "label", None, "pearson", CORRELATIONS, (), "stsb"),
    "qnli": Task("qnli", ("question", "sentence"), "label", 2, "accuracy", ACCURACY, ENTAILS, "qnli"),
    "qqp": Task("qqp", QUESTIONS, "label", 2, "accuracy", ACCURACY_F1, ("not_duplicate", "duplicate"), "qqp"),
    "mnli": Task("mnli", ("premise", "hypothesis"), "label", 3, "accuracy", ACCURACY, NLI, "mnli", "validation_matched"),
    "wnli": Task("wnli", PAIR, "label", 2, "accuracy", ACCURACY, ("not_entailment", "entailment"), "wnli"),
}

MOVIES = Task("movies", ("text",), "score", 2, "accuracy", ACCURACY, ("negative", "positive"))
