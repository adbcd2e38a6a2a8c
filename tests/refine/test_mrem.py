"""The step of MREM and its sequential variant: what is fed, what learns, and what is cached."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from autoquant.core.settings import RecoverySettings
from autoquant.refine import mrem
from autoquant.refine.modules import Module
from autoquant.refine.mrem import SMALL, Reconstruction, prepare, teacher_share
from autoquant.refine.states import calibration_texts
from autoquant.supernet.layers import MixedPrecisionLinear


def layer_weights(supernet: Any) -> list[torch.Tensor]:
    layers = supernet.model.get_submodule(supernet.layers_path)
    return [layer.output.dense.mixed.weight.detach().clone() for layer in layers]


@pytest.mark.parametrize(
    ("forcing", "expected"),
    [("linear", [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]), ("off", [0.0] * 6), ("constant", [0.5] * 6)],
)
def test_the_teachers_share_by_hand(forcing: Any, expected: list[float]) -> None:
    settings = RecoverySettings(mrem_steps=8, teacher_forcing=forcing)
    assert [teacher_share(settings, step) for step in (0, 1, 2, 3, 4, 7)] == expected


def test_modules_learn_one_after_the_other_with_the_earlier_ones_frozen(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, seen = bench.supernet(), []
    step = Reconstruction.step

    def watching(self: Reconstruction, *arguments: Any) -> Any:
        seen.append(layer_weights(supernet))
        return step(self, *arguments)

    monkeypatch.setattr(Reconstruction, "step", watching)
    with bench.open_context() as context:
        log = bench.refine("mrem-s", supernet, context, mrem_steps=4)
    assert [line["module"] for line in log] == [0, 0, 0, 0, 1, 1, 1, 1]
    moved = [[not torch.equal(a, b) for a, b in zip(seen[i], seen[i + 1], strict=True)] for i in range(7)]
    assert moved == [[True, False]] * 4 + [[False, True]] * 3


def test_inputs_are_made_once_and_mixed_with_the_teachers(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, made, fed, given = bench.supernet(), [], [], []
    outputs, forward, step = mrem.outputs_of, Module.forward, Reconstruction.step

    def making(*arguments: Any) -> Any:
        made.append(outputs(*arguments))
        return made[-1]

    def forwarding(self: Module, batch: Any, hidden: Any) -> Any:
        if torch.is_grad_enabled() and hidden is not None:
            fed.append(hidden)
        return forward(self, batch, hidden)

    def stepping(self: Reconstruction, number: int, indices: Any, student: Any) -> Any:
        if student is not None:
            given.append((self.lesson.start.batch(indices), student, made[0].batch(indices)))
        return step(self, number, indices, student)

    monkeypatch.setattr(mrem, "outputs_of", making)
    monkeypatch.setattr(Module, "forward", forwarding)
    monkeypatch.setattr(Reconstruction, "step", stepping)
    with bench.open_context() as context:
        bench.refine("mrem-s", supernet, context, mrem_steps=4)
    assert len(made) == 1
    shares = [1.0, 0.5, 0.0, 0.0]
    assert len(fed) == len(given) == 4
    for share, hidden, (teacher, student, cached) in zip(shares, fed, given, strict=True):
        assert torch.equal(student, cached)
        torch.testing.assert_close(hidden, share * teacher + (1 - share) * student)
        assert not hidden.requires_grad


def test_the_loss_is_the_squared_error_of_hidden_states_and_logits(bench: Any) -> None:
    supernet = bench.supernet()
    with bench.open_context() as context:
        problem = bench.problem("mrem-s", supernet, context)
        modules, lessons = prepare(problem)
        last = Reconstruction(modules[1], lessons[1], problem.settings, context)
        indices = torch.arange(3).numpy()
        student = torch.randn_like(lessons[0].end.batch(indices))
        with torch.no_grad():
            batch = lessons[1].data.collate(indices)
            hidden, logits = modules[1](batch, lessons[1].start.batch(indices))  # the first step is the teacher's alone
        real = batch["attention_mask"].bool()
        expected = (hidden - lessons[1].end.batch(indices))[real].square().mean() + (
            logits - lessons[1].logits[indices]
        ).square().mean()
        loss, output = last.step(0, indices, student)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(output, hidden)


def test_no_more_texts_are_prepared_than_are_looked_at(bench: Any) -> None:
    with bench.open_context() as context:
        for steps, samples, expected in ((2, 4096, 32), (100, 100, 100), (100, 4096, 320)):
            problem = bench.problem("mrem-s", bench.supernet(), context, mrem_steps=steps, mrem_samples=samples)
            assert len(prepare(problem)[1][0].data) == expected


def test_the_seed_draws_the_texts(bench: Any) -> None:
    with bench.open_context() as context:
        problem = bench.problem("mrem-s", bench.supernet(), dataclasses.replace(context, seed=3), mrem_samples=50)
        drawn = prepare(problem)[1][0].data.ids
    expected = calibration_texts(bench.data, 50, seed=3).ids
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(drawn, expected, strict=True))


def test_weights_and_scales_learn_at_rates_of_their_own(bench: Any) -> None:
    rates = {"mrem_learning_rate": 1e-3, "mrem_scale_learning_rate": 1e-2}
    with bench.open_context() as context:
        problem = bench.problem("mrem-s", bench.supernet(), context, mrem_steps=40, **rates)
        modules, lessons = prepare(problem)
        work = Reconstruction(modules[0], lessons[0], problem.settings, context)
        work.step(1, np.arange(4), None)  # the second of the four in which rates rise
    weights, scales = work.optimizer.param_groups
    assert (weights["lr"], scales["lr"]) == pytest.approx((0.5e-3, 0.5e-2))
    assert list(map(id, weights["params"])) == list(map(id, modules[0].weight_parameters()))
    assert list(map(id, scales["params"])) == list(map(id, modules[0].scale_parameters()))
    assert scales["eps"] == SMALL
    assert weights["weight_decay"] == scales["weight_decay"] == 0.0


@pytest.mark.parametrize("name", ["mrem-s", "layer-wise"])
def test_labels_are_not_read(bench: Any, name: str) -> None:
    states = []
    for run in ("as they are", "poisoned"):
        supernet = bench.supernet()
        if run == "poisoned":
            bench.data.labels[:] = -1_000_000
        with bench.open_context(run) as context:
            bench.refine(name, supernet, context, mrem_steps=2)
        states.append(supernet.state_dict())
    assert all(torch.equal(states[1][key], tensor) for key, tensor in states[0].items())


def test_dropped_activations_change_what_is_learned_and_end_with_it(bench: Any) -> None:
    losses = []
    for name, drop in (("none", 0.0), ("most", 0.9)):
        supernet = bench.supernet()
        with bench.open_context(name) as context:
            losses.append(bench.refine("mrem-s", supernet, context, mrem_steps=4, activation_drop=drop)[0]["loss"])
        assert all(module.drop == 0.0 for module in supernet.modules() if isinstance(module, MixedPrecisionLinear))
    assert losses[0] != losses[1]
