"""Which weights PreQuant tunes, and that it leaves all others as they were, in value and on the grid."""

from typing import Any

import torch

from autoquant.refine.prequant import outliers


def test_outliers_are_furthest_from_the_mean() -> None:
    """Mean 3: the distances are 5, 2, 0 and 7."""
    weight = torch.tensor([[-2.0, 1.0], [3.0, 10.0]])
    assert outliers(weight, share=0.25).tolist() == [[0, 0], [0, 1]]
    assert outliers(weight, share=0.5).tolist() == [[1, 0], [0, 1]]
    assert outliers(weight, share=0.001).sum() == 1


def test_only_outliers_move(bench: Any) -> None:
    supernet = bench.supernet()
    before = {name: mixed.weight.detach().clone() for name, mixed in supernet.mixed_weights()}
    rest = {key: tensor for key, tensor in bench.supernet().state_dict().items() if not key.endswith(".mixed.weight")}
    with bench.open_context() as context:
        bench.refine("prequant", supernet, context, steps=4)
    moved = 0
    for name, mixed in supernet.mixed_weights():
        changed = mixed.weight != before[name]
        assert not (changed & (outliers(before[name]) == 0)).any(), name
        moved += int(changed.sum())
    assert moved > 0
    assert all(torch.equal(supernet.state_dict()[key], tensor) for key, tensor in rest.items())
