"""Where quantisation starts: moments by hand, scales as float16 holds them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoquant.core.structure import Unit, prune_partition
from autoquant.core.subgroup import Matrix, Partition
from autoquant.supernet.calibration import initial_scales, input_moments, input_ranges, kept_scales
from autoquant.training.batches import Encoded


class OneLayer(nn.Module):
    """Token 1 is (1, 2), token 2 is (0, 3), padding is (100, 100); `dense` sees every token, `head` the first of each text."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.tensor([[100.0, 100], [1, 2], [0, 3]]))
        self.dense, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, input_ids: Tensor, **_: Tensor) -> Any:
        x = self.embedding(input_ids)
        self.dense(x)
        return SimpleNamespace(logits=self.head(x[:, 0]))


def test_moments_are_those_of_the_real_tokens() -> None:
    ids = (np.array([1, 2, 2]), np.array([2]))
    data = Encoded(ids, tuple(np.zeros_like(i) for i in ids), np.zeros(2, dtype=np.int64), pad_id=0)
    model = OneLayer()
    names = ["dense.weight", "head.weight", "embedding.weight"]
    moments = input_moments(model, names, data)
    # (1, 2) once and (0, 3) three times in two texts; the first tokens are one of each
    assert torch.equal(moments["dense.weight"] * 2, torch.tensor([[1.0, 2], [2, 4 + 3 * 9]]))
    assert torch.equal(moments["head.weight"] * 2, torch.tensor([[1.0, 2], [2, 4 + 9]]))
    assert set(moments) == {"dense.weight", "head.weight"}
    assert not model.dense._forward_pre_hooks


def test_moments_do_not_depend_on_the_batches(bench: Any) -> None:
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    one = input_moments(bench.model, [name], bench.data.select(np.arange(3)))[name]
    each = [input_moments(bench.model, [name], bench.data.select(np.array([i])))[name] for i in range(3)]
    torch.testing.assert_close(one, sum(each) / 3, atol=1e-4, rtol=1e-4)


def test_ranges_are_the_mean_size_and_the_smallest_of_the_real_inputs() -> None:
    """Two batches, and 35 tokens of two numbers in them: (0, 3) is there 34 times, and (1, -2) once."""
    model = OneLayer()
    model.embedding.weight[1, 1] = -2.0
    ids = (np.array([2]),) * 32 + (np.array([1, 2, 2]),)
    data = Encoded(ids, tuple(np.zeros_like(i) for i in ids), np.zeros(33, dtype=np.int64), pad_id=0)
    assert input_ranges(model, ["dense.weight"], data) == {"dense.weight": (pytest.approx((34 * 3 + 3) / 70), -2.0)}


@pytest.mark.parametrize("scale", ["row", "subgroup"])
def test_scales_are_positive_and_exact_in_float16(make_bench: Callable[..., Any], scale: str) -> None:
    bench = make_bench(scale)
    for partition in bench.table.partitions:
        scales = bench.scales[partition.matrix.name]
        count = partition.matrix.rows if scale == "row" else partition.groups
        assert scales.shape == (count, 5)
        assert bool((scales > 0).all())
        assert torch.equal(scales.half().float(), scales)
        steps = scales.mean(0)
        assert bool((steps[:-1] > steps[1:]).all()), "more bits take finer steps"


def test_the_scale_of_a_group_is_the_mean_of_its_rows(make_bench: Callable[..., Any]) -> None:
    rows, groups = make_bench("row"), make_bench("subgroup")
    partition = groups.table.partitions[0]
    assert partition.buckets is not None
    name = partition.matrix.name
    for group in range(partition.groups):
        mean = rows.scales[name][torch.from_numpy(partition.buckets == group)].mean(0)
        torch.testing.assert_close(groups.scales[name][group], mean, rtol=1e-3, atol=0)


def test_kept_scales_are_those_of_the_rows_that_stay() -> None:
    query, head = Partition(Matrix("q", 16, 10, "query", 0), (0, 2), (4, 4, 4, 4)), Unit(0, "head", 1, 4, 8)
    smaller = prune_partition(query, [head])
    rows, groups = torch.arange(1.0, 17.0)[:, None], torch.arange(1.0, 5.0)[:, None]
    assert kept_scales(rows, query, smaller, [head])[:, 0].tolist() == [1, 2, 3, 4, *range(9, 17)]
    assert kept_scales(groups, query, smaller, [head])[:, 0].tolist() == [1, 3, 4]


def test_inputs_decide_the_scale(bench: Any) -> None:
    """A layer whose inputs live in one column takes the scale that serves this column."""
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    weight = bench.model.get_parameter(name).detach()
    moment = torch.zeros(32, 32)
    moment[5, 5] = 1.0
    column = list(bench.table.widths[1:]).index(2)
    error = {}
    for label, moments in (("told", {name: moment}), ("not", {})):
        scale = initial_scales(bench.model, bench.table, bench.blueprint.quantizer, moments, True)[name][:, column]
        delta = bench.blueprint.quantizer.fake_quantize(weight, scale, 2) - weight
        error[label] = delta[:, 5].square().sum()
    assert error["told"] < 0.7 * error["not"]
