"""Learning rates; exchanged words: the teacher reads what the student reads, and an interruption changes nothing."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from autoquant.core.progress import SilentProgress
from autoquant.core.schedule import warmup_linear
from autoquant.refine import REFINERS
from autoquant.refine.train import TaughtTexts, everything
from autoquant.training.distillation import teach
from autoquant.training.loop import run_steps

SHARE = 0.5


@pytest.mark.parametrize(("name", "warmup"), [("retrain", 0.05), ("layer-wise", 0.1), ("mrem-s", 0.1)])
def test_rates_rise_and_then_fall_to_nothing(name: str, warmup: float, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of weights and of scales, each from its own."""
    rates, step = [], torch.optim.AdamW.step
    own = {"learning_rate": 1e-3, "scale_learning_rate": 5e-3}
    every = own | {f"mrem_{key}": rate for key, rate in own.items()}

    def watching(self: Any, *arguments: Any) -> Any:
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watching)
    with bench.open_context() as context:
        bench.refine(name, bench.supernet(), context, steps=20, mrem_steps=20, mrem_modules=1, batch_size=2, **every)
    factors = [warmup_linear(number, 20, warmup) for number in range(20)]
    np.testing.assert_allclose(rates[:20], np.outer(factors, list(own.values())))


def test_scales_do_not_decay(bench: Any) -> None:
    with bench.open_context() as context:
        weights, scales = everything(bench.problem("retrain", bench.supernet(), context))
    assert "weight_decay" not in weights
    assert scales["weight_decay"] == 0.0


def refuse() -> Any:
    raise AssertionError("the teacher's outputs on the texts as they are were asked for")


def test_the_teacher_reads_the_exchanged_texts(bench: Any) -> None:
    with bench.open_context() as context:
        problem = dataclasses.replace(bench.problem("retrain", bench.supernet(), context, exchange=SHARE), outputs=refuse)
        texts = TaughtTexts(problem, asks_teacher=True)
    indices = np.arange(6)
    torch.manual_seed(0)
    batch = texts.batch(indices)
    assert not torch.equal(batch["input_ids"], problem.data.collate(indices)["input_ids"])
    taught, expected = texts.taught(batch, indices), teach(bench.teacher, batch)
    assert torch.equal(taught.logits, expected.logits)
    assert torch.equal(taught.hidden, expected.hidden)
    assert not taught.logits.requires_grad


@pytest.mark.parametrize("name", ["retrain", "ternarybert", "annealed", "quant-noise"])
def test_every_training_learns_from_exchanged_texts(name: str, bench: Any) -> None:
    with bench.open_context() as context:
        problem = bench.problem(name, bench.supernet(), context, exchange=SHARE, steps=8)
        REFINERS[name].refine(dataclasses.replace(problem, outputs=refuse))
        losses = [line["loss"] for line in context.run.read_log()]
    assert len(losses) == 8
    assert np.isfinite(losses).all()


def test_exchanged_texts_bring_the_model_closer_to_the_teacher_on_those_as_they_are(bench: Any) -> None:
    supernet = bench.supernet()
    with bench.open_context() as context:
        outputs = bench.problem("retrain", supernet, context).outputs()
        wanted = torch.cat([outputs.batch(i).logits for i in outputs.data.by_length(64)])

        def distance() -> float:
            with torch.no_grad():
                batches = [outputs.data.collate(i) for i in outputs.data.by_length(64)]
                found = torch.cat([supernet(**{k: v for k, v in b.items() if k != "labels"}).logits for b in batches])
            return (found - wanted).square().mean().item()

        before = distance()
        bench.refine("retrain", supernet, context, exchange=SHARE)
        assert distance() < 0.8 * before


def test_an_interruption_exchanges_the_same_words(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    supernets = [bench.supernet() for _ in range(3)]
    with bench.open_context("whole") as context:
        whole = bench.refine("retrain", supernets[0], context, exchange=SHARE, steps=6)
    with bench.open_context() as context, monkeypatch.context() as patch:
        patch.setattr("autoquant.refine.train.run_steps", lambda c, s, t, n, step, state: run_steps(c, s, t, 3, step, state))
        bench.refine("retrain", supernets[1], dataclasses.replace(context, progress=SilentProgress()), exchange=SHARE, steps=6)
    with bench.open_context() as context:
        assert bench.refine("retrain", supernets[2], context, exchange=SHARE, steps=6) == whole
    assert all(torch.equal(supernets[2].state_dict()[key], tensor) for key, tensor in supernets[0].state_dict().items())
