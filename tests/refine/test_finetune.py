"""Plain fine-tuning asks no teacher and learns the labels."""

import dataclasses
from typing import Any

import numpy as np

from autoquant.refine import REFINERS
from autoquant.training.evaluate import predict_logits


def test_labels_are_learnt_without_a_teacher(bench: Any) -> None:
    supernet = bench.supernet()

    def refuse() -> Any:
        raise AssertionError("the teacher was asked")

    with bench.open_context() as context:
        problem = dataclasses.replace(bench.problem("finetune", supernet, context, steps=40), outputs=refuse)
        REFINERS["finetune"].refine(problem)
    predicted = predict_logits(supernet, bench.data).argmax(axis=1)
    assert np.mean(predicted == bench.data.labels) > 0.7
