"""The search moves bits only after warm-up and on held-out texts, fills its budget in every variant, and resumes."""

import dataclasses
import signal
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from autoquant.strategies import STRATEGIES, Problem, SearchResult, Start, dnas
from autoquant.strategies.prior import sensitivity_prior, start_from
from autoquant.supernet.build import Supernet

MakeProblem = Callable[..., Problem]


def searched_of(start: Start | None) -> dict[str, torch.Tensor]:
    """Weights and scales by name."""
    assert start is not None
    return {**start.weights, **{f"{name} scale": scale for name, scale in start.scales.items()}}


def search(problem: Problem) -> SearchResult:
    return STRATEGIES["dnas"].search(problem)


def fisher(problem: Problem) -> Any:
    return STRATEGIES["fisher"].search(problem).allocation


def test_without_trust_a_search_gives_the_sensitivity_knapsack(make_problem: MakeProblem) -> None:
    moving = {"steps": 3, "warmup": 0.0, "architecture_learning_rate": 1.0}
    doubting, trustful = (search(make_problem(0.2, trust=trust, **moving)) for trust in (0.0, 1.0))
    assert doubting.allocation == fisher(make_problem(0.2))
    assert trustful.allocation != doubting.allocation


def test_bits_do_not_move_before_warmup_ends(make_problem: MakeProblem) -> None:
    problem = make_problem(warmup=1.0, architecture_learning_rate=10.0)
    ours, theirs = (problem.table.to_choice(a) for a in (search(problem).allocation, fisher(problem)))
    assert (ours != theirs).mean() <= 0.05
    assert not any("held_out_loss" in line for line in problem.context.run.read_log())


def test_the_log_tells_when_bits_opened(make_problem: MakeProblem) -> None:
    problem = make_problem(warmup=0.5, anneal_after=0.0, temperature_start=1.0, temperature_end=0.1, steps=6)
    search(problem)
    log = problem.context.run.read_log()
    assert [line["step"] for line in log if "held_out_loss" in line] == [3, 4, 5]
    temperatures = [line["temperature"] for line in log]
    assert temperatures[0] == 1.0
    assert all(a > b for a, b in pairwise(temperatures))


def test_weights_learn_from_one_part_and_bits_from_the_other(make_problem: MakeProblem) -> None:
    problem, read = make_problem(warmup=0.5, steps=4), []

    class Reading:
        def __init__(self, name: str, outputs: Any) -> None:
            self.name, self.outputs, self.data = name, outputs, outputs.data

        def batch(self, indices: np.ndarray) -> Any:
            read.append(self.name)
            return self.outputs.batch(indices)

    train, held_out = Reading("train", problem.train()), Reading("held_out", problem.held_out())
    assert len(train.data) + len(held_out.data) == 320
    assert {text.tobytes() for text in train.data.ids}.isdisjoint(text.tobytes() for text in held_out.data.ids)
    parts: Any = {"train": lambda: train, "held_out": lambda: held_out}
    search(dataclasses.replace(problem, **parts))
    assert read == ["train", "train", "train", "held_out", "train", "held_out"]


def test_bits_are_judged_with_a_weight_of_hidden_states_of_their_own(
    make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, seen, real = make_problem(steps=2, warmup=0.0, architecture_hidden=0.25), [], dnas.distillation_loss

    def watching(*arguments: Any) -> torch.Tensor:
        seen.append(arguments[-1].hidden)
        return real(*arguments)

    monkeypatch.setattr(dnas, "distillation_loss", watching)
    search(problem)
    assert seen == [problem.distillation.hidden, 0.25] * 2


@pytest.mark.parametrize("sampling", ["soft", "hard"])
@pytest.mark.parametrize("weight_sampling", ["soft", "hard"])
def test_bits_and_weights_learn_under_the_samples_that_are_asked_for(
    sampling: str, weight_sampling: str, make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed, real = [], Supernet.use_mixture

    def watching(self: Supernet, temperature: float, hard: bool) -> None:
        mixed.append("hard" if hard else "soft")
        real(self, temperature, hard)

    monkeypatch.setattr(Supernet, "use_mixture", watching)
    search(make_problem(steps=1, warmup=0.0, sampling=sampling, weight_sampling=weight_sampling))
    assert mixed == (["soft", sampling] if weight_sampling == "soft" else [sampling])  # a hard sample of weights is a choice


def test_weights_and_scales_move_and_start_from_the_teacher(make_problem: MakeProblem) -> None:
    problem = make_problem(steps=3, warmup=0.0)
    fresh = problem.make_supernet()
    before, after = searched_of(Start(fresh.latent_state(), fresh.learned_scales())), searched_of(search(problem).searched)
    assert after.keys() == before.keys()
    for kind in ("output.dense.weight", "output.dense.weight scale", "word_embeddings.weight", "LayerNorm.bias"):
        name = next(name for name in after if name.endswith(kind))
        assert not torch.equal(after[name], before[name]), name
        torch.testing.assert_close(after[name], before[name], atol=0.1, rtol=0)


@pytest.mark.parametrize("sampling", ["soft", "hard"])
def test_the_size_term_leads_to_the_budget(sampling: str, make_problem: MakeProblem) -> None:
    """From nothing, where every width is as likely, to a budget far below."""
    settings = {"steps": 40, "warmup": 0.0, "prior_strength": 0.0, "architecture_learning_rate": 0.2, "penalty": 30.0}
    problem = make_problem(0.15, sampling=sampling, **settings)
    search(problem)
    sizes = [line["expected_bytes"] / problem.budget.bytes - 1 for line in problem.context.run.read_log()]
    assert sizes[0] > 0.2
    assert abs(sizes[-1]) < 0.25 * sizes[0]


def test_the_probability_is_that_of_the_chosen_width(make_problem: MakeProblem) -> None:
    problem = make_problem(warmup=1.0)
    result = search(problem)
    assert result.probability is not None
    start = sensitivity_prior(problem.sensitivity, problem.table, problem.budget.bytes, problem.search.prior_strength)
    choice = problem.table.to_choice(result.allocation)
    expected = np.exp(start.choices)[np.arange(len(choice)), choice]
    np.testing.assert_allclose(result.probability, expected, atol=1e-5)


@pytest.mark.parametrize("loss", [3, 8])  # of a weight step before bits open; of a bit step
def test_an_interrupted_search_is_the_same_search(loss: int, make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(steps=7, warmup=0.6)
    whole, log = search(problem), problem.context.run.read_log()
    problem.context.run.discard_state(problem.stage)  # a finished stage would be read, not run again
    real, calls = dnas.distillation_loss, []

    def interrupting(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == loss:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(dnas, "distillation_loss", interrupting)
    with pytest.raises(KeyboardInterrupt):
        search(problem)
    assert 0 < len(problem.context.run.read_log()) < 7
    resumed = search(problem)
    assert resumed.allocation == whole.allocation
    np.testing.assert_array_equal(resumed.values, whole.values)
    again = searched_of(resumed.searched)
    assert all(torch.equal(again[name], tensor) for name, tensor in searched_of(whole.searched).items())
    assert problem.context.run.read_log() == log


# Its variants ---------------------------------------------------------------------------------------------------------

VARIANTS: list[dict[str, Any]] = [
    {"size_term": "piecewise_log"},
    {"size_term": "soft_barrier", "one_hot_weight": 0.1},
    {"zero": "softmax"},
    {"zero": "softmax", "sampling": "hard", "prior_strength": 0.0},
    {"weight_sampling": "soft"},
    {"bilevel": False},
    {"unrolled": 1e-3},
    {"derive": "argmax"},
    {"scale_learning_rate": 0.0},
    {"architecture_optimizer": "sgd"},
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


@every_variant
def test_every_variant_fills_the_budget_and_moves_the_bits(variant: dict[str, Any], make_problem: MakeProblem) -> None:
    problem = make_problem(0.3, steps=4, warmup=0.25, architecture_learning_rate=0.5, **variant)
    result = search(problem)
    result.allocation.check_fits(problem.table.partitions)
    size = problem.table.total(problem.table.to_choice(result.allocation))
    assert 0.99 * problem.budget.bytes <= size <= problem.budget.bytes
    log = problem.context.run.read_log()
    assert [line["step"] for line in log if "derived_bytes" in line] == [1, 2, 3]
    assert result.derived_bytes is not None
    assert problem.table.smallest() <= result.derived_bytes <= problem.table.largest()
    if variant.get("prior_strength", 1.0):
        assert len({line["expected_bytes"] for line in log if "expected_bytes" in line}) > 1


def test_the_default_is_first_order_bilevel_with_gates_and_a_knapsack(make_problem: MakeProblem) -> None:
    settings = make_problem().search
    chosen = settings.size_term, settings.zero, settings.bilevel, settings.unrolled, settings.derive
    assert chosen == ("augmented_lagrangian", "gate", True, 0.0, "knapsack")


@every_variant
def test_an_interrupted_variant_is_the_same_search(
    variant: dict[str, Any], make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem(steps=4, warmup=0.25, **variant)
    whole = search(problem)
    problem.context.run.discard_state(problem.stage)
    real, calls = dnas.distillation_loss, []

    def interrupting(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(dnas, "distillation_loss", interrupting)
    with pytest.raises(KeyboardInterrupt):
        search(problem)
    resumed = search(problem)
    np.testing.assert_array_equal(resumed.values, whole.values)
    assert resumed.allocation == whole.allocation


def test_scales_without_a_learning_rate_stay(make_problem: MakeProblem) -> None:
    problem = make_problem(steps=3, scale_learning_rate=0.0)
    before, after = problem.make_supernet().learned_scales(), search(problem).searched
    assert after is not None
    assert all(torch.equal(after.scales[name], scale) for name, scale in before.items())


def test_single_level_steps_share_their_batches_of_the_whole_file(make_problem: MakeProblem) -> None:
    problem, read = make_problem(steps=3, warmup=0.0, bilevel=False), []
    outputs = problem.whole()

    class Reading:
        data = outputs.data

        def batch(self, indices: np.ndarray) -> Any:
            read.append(tuple(indices))
            return outputs.batch(indices)

    whole: Any = Reading()
    search(dataclasses.replace(problem, whole=lambda: whole))
    assert len(whole.data) == 320
    assert read[::2] == read[1::2]
    assert len(set(read)) == 3


def test_second_order_differs_from_first(make_problem: MakeProblem) -> None:
    results = [search(make_problem(stage=f"{rate}", steps=2, warmup=0.0, unrolled=rate)) for rate in (0.0, 1.0)]
    assert not np.array_equal(results[0].values, results[1].values)


def test_the_four_losses_of_an_unrolled_step_are_of_one_sample_of_bits(
    make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares, real = [], Supernet.use_mixture

    def watching(self: Supernet, temperature: float, hard: bool) -> None:
        real(self, temperature, hard)
        shares.append(torch.cat([mixed._share.detach() for _, mixed in self.mixed_weights()]))

    monkeypatch.setattr(Supernet, "use_mixture", watching)
    search(make_problem(steps=2, warmup=0.0, unrolled=1e-3))
    assert len(shares) == 8
    for step in (shares[:4], shares[4:]):
        assert all(torch.equal(share, step[0]) for share in step)
    assert not torch.equal(shares[0], shares[4])


def test_the_size_term_is_in_an_unrolled_step_too(make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no loss has a gradient, and every width is as likely, only the size leads to a budget far below."""

    def flat(train: Any, held_out: Any, weights: Any, architecture: Any, rate: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return torch.zeros(()), [torch.zeros_like(logits) for logits in architecture]

    monkeypatch.setattr(dnas, "unrolled_gradient", flat)
    problem = make_problem(0.15, steps=2, warmup=0.0, prior_strength=0.0, unrolled=1e-3)
    search(problem)
    first, second = (line["expected_bytes"] for line in problem.context.run.read_log())
    assert second < first


def test_argmax_starts_from_the_most_probable_and_the_knapsack_does_not(make_problem: MakeProblem) -> None:
    """A budget that the most probable choices meet exactly is theirs."""
    problem = make_problem(warmup=1.0, derive="argmax")
    derived = search(problem).derived_bytes
    assert derived is not None
    supernet = problem.make_supernet()
    start = sensitivity_prior(problem.sensitivity, problem.table, problem.budget.bytes, problem.search.prior_strength)
    start_from(supernet, start)
    assert derived == problem.table.total(supernet.most_probable()[0])


def test_what_does_not_matter_is_removed_and_what_matters_is_not(make_structured: MakeProblem) -> None:
    problem = make_structured(0.1)
    scores = problem.sensitivity.removals * 1e3
    idle = np.flatnonzero([unit.index in (1, 2) for unit in problem.table.removable.structure.units])
    scores[idle] = 0.0
    units = problem.table.removable.structure.units
    problem = dataclasses.replace(problem, sensitivity=dataclasses.replace(problem.sensitivity, removals=scores))
    for name in ("fisher", "dnas"):
        removed = STRATEGIES[name].search(problem).allocation.removed
        assert set(removed) == {units[number].name for number in idle}, name
