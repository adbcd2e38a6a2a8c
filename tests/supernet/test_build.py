"""The supernet is the mixture it says it is, weighs what the byte model says, and freezes into the file that is written."""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoquant.core.allocation import BitAllocation
from autoquant.pack.checkpoint import write_packed
from autoquant.pack.model import load_packed
from autoquant.quantizers.activation import fake_quantize_dynamic
from autoquant.supernet.layers import MixedPrecisionLinear
from autoquant.training.evaluate import predict_logits

both_scales = pytest.mark.parametrize("scale", ["row", "subgroup"])
both_activations = pytest.mark.parametrize("activation_bits", [32, 8])


def set_one_hot(supernet: Any, allocation: BitAllocation) -> None:
    bits = torch.tensor([b for name in supernet.table.slices() for b in allocation.bits[name]])
    with torch.no_grad():
        supernet.width_logits.copy_(torch.where(bits[:, None] == torch.tensor(supernet.widths), 40.0, -40.0))
        supernet.gate_logits.copy_(torch.where(bits > 0, 40.0, -40.0))


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


# Choosing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_expected_bytes_of_a_certain_choice_are_those_of_the_file(bench: Any, seed: int) -> None:
    supernet, allocation = bench.supernet(), bench.allocation(seed)
    set_one_hot(supernet, allocation)
    exact = bench.blueprint.byte_model.exact_bytes(allocation)
    assert supernet.expected_bytes().item() == pytest.approx(exact, abs=0.01)


def test_expected_bytes_are_the_mean_over_all_choices(bench: Any) -> None:
    supernet = bench.supernet()
    torch.nn.init.normal_(supernet.width_logits)
    shares = supernet.probabilities().detach().double().numpy()
    expected = sum(float(p @ b) for p, b in zip(shares, bench.table.bytes, strict=True)) + bench.table.fixed
    assert supernet.expected_bytes().item() == pytest.approx(expected, rel=1e-6)


def test_probabilities_sum_to_one_over_what_is_allowed(bench: Any) -> None:
    supernet = bench.supernet()
    torch.nn.init.normal_(supernet.width_logits, std=3.0)
    torch.nn.init.normal_(supernet.gate_logits, std=3.0)
    shares = supernet.probabilities()
    torch.testing.assert_close(shares.sum(1), torch.ones(len(bench.table)))
    allowed = torch.from_numpy(bench.table.allowed)
    assert not shares[~allowed].any()
    assert bool((shares[allowed] > 0).all())
    prunable = allowed[:, 0]
    torch.testing.assert_close(shares[prunable, 0], 1 - torch.sigmoid(supernet.gate_logits[prunable]))


def test_what_cannot_be_pruned_never_is(bench: Any) -> None:
    supernet = bench.supernet()
    nn.init.constant_(supernet.gate_logits, -50.0)
    rows = bench.table.slices()
    for seed in range(5):
        torch.manual_seed(seed)
        supernet.use_sample()
        for partition in bench.table.partitions:
            keep = supernet._keep[rows[partition.matrix.name]]
            assert bool((keep == (0 if 0 in partition.widths else 1)).all()), partition.matrix.name


def test_samples_follow_the_probabilities(bench: Any) -> None:
    supernet = bench.supernet()
    nn.init.normal_(supernet.width_logits)
    nn.init.normal_(supernet.gate_logits)
    torch.manual_seed(0)
    counts, draws = torch.zeros(len(bench.table), len(bench.table.widths)), 400
    for _ in range(draws):
        supernet.use_sample()
        column = torch.where(supernet._keep > 0.5, supernet._column + 1, 0)
        counts += functional.one_hot(column, counts.shape[1])
    difference = counts / draws - supernet.probabilities().detach()
    assert difference.abs().mean() < 0.015
    assert difference.abs().max() < 0.12


def test_what_was_sampled_is_what_is_used(bench: Any) -> None:
    supernet = bench.supernet()
    nn.init.normal_(supernet.gate_logits)
    supernet.use_sample()
    choice, gone = supernet.sampled()
    assert not len(gone)
    used = torch.tensor(supernet.widths)[supernet._column] * (supernet._keep > 0.5)
    assert np.asarray(bench.table.widths)[choice].tolist() == used.tolist()


def test_without_gates_zero_bits_are_a_choice_of_the_softmax(bench: Any) -> None:
    """Equal logits: every allowed width, 0 among them, is as likely, and as often sampled."""
    supernet = bench.supernet(gates=False)
    allowed = torch.from_numpy(bench.table.allowed).float()
    equal = allowed / allowed.sum(1, keepdim=True)
    torch.testing.assert_close(supernet.probabilities(), equal)
    torch.manual_seed(0)
    counts, draws = torch.zeros_like(allowed), 400
    for _ in range(draws):
        supernet.use_sample()
        column = torch.where(supernet._keep > 0.5, supernet._column + 1, 0)
        counts += functional.one_hot(column, counts.shape[1])
    assert (counts / draws - equal).abs().max() < 0.12
    assert not counts[allowed == 0].any()


@pytest.mark.parametrize("hard", [False, True])
def test_without_gates_a_mixture_reaches_the_zero_logit(hard: bool, bench: Any) -> None:
    supernet = bench.supernet(gates=False)
    nn.init.normal_(supernet.gate_logits)
    torch.manual_seed(0)
    supernet.use_mixture(0.7, hard)
    supernet(**bench.batch()).logits.square().sum().backward()
    prunable = torch.from_numpy(bench.table.allowed[:, 0])
    assert bool((supernet.gate_logits.grad[prunable] != 0).any())
    assert not supernet.gate_logits.grad[~prunable].any()


def test_the_most_probable_is_the_largest_probability(bench: Any) -> None:
    supernet, allocation = bench.supernet(), bench.allocation(2)
    set_one_hot(supernet, allocation)
    assert bench.table.to_allocation(supernet.most_probable()[0]) == allocation


def test_values_are_log_probabilities_by_parameters_plus_a_rate_per_byte(bench: Any) -> None:
    supernet, table = bench.supernet(), bench.table
    nn.init.normal_(supernet.width_logits)
    values = supernet.values(nats_per_byte=0.25)
    row, column = table.slices()["bert.encoder.layer.1.intermediate.dense.weight"].start + 1, 3
    log = supernet.probabilities()[row, column].log().item()
    assert values[row, column] == pytest.approx(log * table.parameters[row] + 0.25 * table.bytes[row, column], rel=1e-5)
    assert np.array_equal(np.isfinite(values), table.allowed)


def test_every_parameter_is_of_one_kind(bench: Any) -> None:
    supernet = bench.supernet()
    kinds = [supernet.architecture_parameters(), supernet.scale_parameters(), supernet.weight_parameters()]
    ids = [id(p) for kind in kinds for p in kind]
    assert sorted(ids) == sorted(id(p) for p in supernet.parameters())
    assert len(supernet.scale_parameters()) == len(bench.table.partitions)


# The gradient ---------------------------------------------------------------------------------------------------------


@both_scales
def test_architecture_gradient_is_that_of_copies(make_bench: Callable[..., Any], scale: str) -> None:
    """Every width's copy of every matrix in one autograd graph, with the same Gumbel noise."""
    bench = make_bench(scale)
    supernet, batch, temperature = bench.supernet(), bench.batch(), 0.8
    nn.init.normal_(supernet.width_logits)
    weighting = torch.tensor([1.0, -2.0])
    arch = supernet.architecture_parameters()

    torch.manual_seed(5)
    supernet.use_mixture(temperature, hard=False)
    ours = torch.autograd.grad((supernet(**batch).logits * weighting).sum(), arch)

    torch.manual_seed(5)
    masked = supernet.width_logits.masked_fill(~torch.from_numpy(bench.table.allowed[:, 1:]), -torch.inf)
    noise = -torch.log(-torch.log(torch.rand_like(masked)))
    uniform = torch.rand_like(supernet.gate_logits)
    gate = torch.sigmoid((supernet.gate_logits + torch.logit(uniform)) / temperature)
    gate = torch.where(torch.from_numpy(bench.table.allowed[:, 0]), gate, 1.0)
    share = torch.softmax((masked + noise) / temperature, 1) * gate[:, None]
    weights = {}
    for partition, rows in zip(bench.table.partitions, bench.table.slices().values(), strict=True):
        name, of_row = partition.matrix.name, torch.from_numpy(partition.group_of_row)
        weight, scales = bench.model.get_parameter(name).detach(), bench.scales[name]
        scales = scales if scale == "row" else scales[of_row]
        copies = [bench.blueprint.quantizer.fake_quantize(weight, scales[:, k], w) for k, w in enumerate(supernet.widths)]
        weights[name] = (share[rows][of_row].T[:, :, None] * torch.stack(copies)).sum(0)
    output = torch.func.functional_call(bench.model, weights, kwargs=batch).logits
    theirs = torch.autograd.grad((output * weighting).sum(), arch)

    for mine, naive in zip(ours, theirs, strict=True):
        assert naive.abs().max() > 1e-3
        torch.testing.assert_close(mine, naive, atol=1e-5, rtol=1e-3)


def test_a_hard_mixture_shows_one_width_and_still_has_a_gradient(bench: Any) -> None:
    supernet, batch = bench.supernet(), bench.batch()
    torch.manual_seed(1)
    supernet.use_mixture(0.5, hard=True)
    for name, mixed in supernet.mixed_weights():
        share = mixed._share
        torch.testing.assert_close(share, share.round(), atol=1e-6, rtol=0, msg=name)
        assert int(share.sum(1).max()) <= 1
    (gradient,) = torch.autograd.grad(supernet(**batch).logits.sum(), [supernet.width_logits])
    assert gradient.any()


def test_a_sample_reaches_weights_and_scales_but_not_the_logits(bench: Any) -> None:
    supernet, batch = bench.supernet(), bench.batch()
    torch.manual_seed(1)
    supernet.use_sample()
    supernet(**batch).logits.sum().backward()
    assert supernet.width_logits.grad is None
    assert supernet.gate_logits.grad is None
    name = "bert.encoder.layer.0.output.dense.weight"
    mixed = dict(supernet.mixed_weights())[name]
    rows = torch.from_numpy(mixed.partition.group_of_row)
    kept = supernet._keep[bench.table.slices()[name]][rows] > 0
    assert bool(mixed.weight.grad[kept].any(dim=1).all())
    assert not mixed.weight.grad[~kept].any()
    # one scale a kept row learns, that of the sampled width
    assert torch.equal((mixed.log_scale.grad != 0).sum(1), kept.long())


# Freezing -------------------------------------------------------------------------------------------------------------


def frozen(bench: Any, seed: int = 0) -> tuple[Any, BitAllocation]:
    supernet, allocation = bench.supernet(), bench.allocation(seed)
    supernet.freeze(allocation)
    return supernet.eval(), allocation


def write(bench: Any, supernet: Any, allocation: BitAllocation, folder: Path) -> Path:
    settings = bench.blueprint.packed_settings()
    config = copy.deepcopy(bench.model.config)
    config.quantization_config = {"quant_method": "autoquant", **settings}
    config.save_pretrained(folder)
    state, scales = supernet.packed_state()
    model, quantizer = bench.blueprint.byte_model, bench.blueprint.quantizer
    return write_packed(folder / "model.safetensors", state, scales, allocation, model, quantizer, settings)


@both_scales
@both_activations
@pytest.mark.parametrize("quantizer", ["midrise", "minmax"])
def test_the_reloaded_file_is_the_simulated_model(
    make_bench: Callable[..., Any], scale: str, activation_bits: int, quantizer: str, tmp_path: Path
) -> None:
    bench = make_bench(scale, activation_bits, quantizer)
    supernet, allocation = frozen(bench)
    path = write(bench, supernet, allocation, tmp_path)
    assert path.stat().st_size == bench.blueprint.byte_model.exact_bytes(allocation)
    simulated, reloaded = supernet.materialize(copy.deepcopy(bench.model)), load_packed(tmp_path)
    some = bench.data.select(np.arange(64))
    np.testing.assert_allclose(predict_logits(reloaded, some), predict_logits(simulated, some), atol=1e-6)
    for name in supernet.table.slices():
        path_of_module = name.removesuffix(".weight")
        assert torch.equal(reloaded.get_submodule(path_of_module).weight, simulated.get_parameter(name).data), name


@both_scales
@pytest.mark.parametrize("activation_bits", [8, 4])
def test_ternary_weights_and_static_ranges_are_reloaded_too(
    make_bench: Callable[..., Any], scale: str, activation_bits: int, tmp_path: Path
) -> None:
    bench = make_bench(scale, activation_bits, "lsq", "static")
    supernet, allocation = frozen(bench)
    path = write(bench, supernet, allocation, tmp_path)
    assert path.stat().st_size == bench.blueprint.byte_model.exact_bytes(allocation)
    simulated, reloaded = supernet.materialize(copy.deepcopy(bench.model)), load_packed(tmp_path)
    some = bench.data.select(np.arange(64))
    np.testing.assert_allclose(predict_logits(reloaded, some), predict_logits(simulated, some), atol=1e-6)
    batch = bench.batch(32)
    full, ours, theirs = logits(bench.model, batch), logits(supernet, batch), logits(simulated, batch)
    assert (ours - theirs).abs().mean() < 0.5 * (ours - full).abs().mean()
    for name, mixed in supernet.mixed_weights():
        torch.testing.assert_close(mixed().detach(), simulated.get_parameter(name).data, atol=1e-3, rtol=1e-3)
        for group, bits in enumerate(allocation.bits[name]):
            if bits == 2 and not mixed.per_row:  # one scale, by TWN
                members = torch.from_numpy(mixed.partition.group_of_row == group)
                rows, weight = (model.get_parameter(name).data[members] for model in (simulated, bench.model))
                above = weight.abs() > 0.7 * weight.abs().mean()
                assert torch.equal(rows != 0, above)
                assert rows.abs().max().item() == pytest.approx(weight.abs()[above].mean().item(), rel=1e-3)


@both_scales
@both_activations
@pytest.mark.parametrize("quantizer", ["midrise", "minmax"])
def test_the_frozen_forward_is_the_simulated_model(
    make_bench: Callable[..., Any], scale: str, activation_bits: int, quantizer: str
) -> None:
    """But for biases and norms, which take their float16 values here already, as calibration gave the scales theirs."""
    bench = make_bench(scale, activation_bits, quantizer)
    supernet, _ = frozen(bench)
    with torch.no_grad():
        for parameter in supernet.model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(parameter.half())
    simulated = supernet.materialize(copy.deepcopy(bench.model))
    for name, mixed in supernet.mixed_weights():
        torch.testing.assert_close(mixed().detach(), simulated.get_parameter(name).data, atol=1e-6, rtol=1e-5)
    batch = bench.batch(32)
    full, ours, theirs = logits(bench.model, batch), logits(supernet, batch), logits(simulated, batch)
    assert (ours - full).abs().max() > 0.05
    if activation_bits == 32:
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    else:  # one rounding that falls to the other side may move a range, and so others; ranges of another kind move them all
        unrounded = logits(frozen(make_bench(scale, 32, quantizer))[0], batch)
        assert (ours - theirs).abs().mean() < 0.5 * (ours - unrounded).abs().mean()


def test_the_simulated_model_quantises_the_inputs_that_the_supernet_does(make_bench: Callable[..., Any]) -> None:
    bench = make_bench("row", 8)
    supernet, _ = frozen(bench)
    simulated = supernet.materialize(copy.deepcopy(bench.model))
    path, x = "bert.encoder.layer.0.intermediate.dense", torch.randn(3, 32)
    dense = simulated.get_submodule(path)
    torch.testing.assert_close(dense(x), functional.linear(fake_quantize_dynamic(x), dense.weight, dense.bias))
    modules = supernet.model.named_modules()
    dynamic = {name: m.activation_bits for name, m in modules if isinstance(m, MixedPrecisionLinear)}
    assert dynamic.pop("classifier") == 32
    assert set(dynamic.values()) == {8}
    assert type(simulated.classifier) is nn.Linear


def test_pruned_groups_are_zero_and_the_others_on_the_grid_of_their_width(bench: Any) -> None:
    supernet, allocation = frozen(bench)
    simulated = supernet.materialize(copy.deepcopy(bench.model))
    for partition in bench.table.partitions:
        weight, bits = simulated.get_parameter(partition.matrix.name).data, allocation.row_bits(partition)
        for row, width in zip(weight, bits, strict=True):
            values = len(row.unique())
            assert values <= 2**width, partition.matrix.name
            assert width or not row.any()
        kept = torch.from_numpy(bits > 0) & bench.model.get_parameter(partition.matrix.name).any(dim=1)
        assert bool(weight[kept].any(dim=1).all())


def test_freezing_leaves_the_source_model_alone(bench: Any) -> None:
    before = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    supernet, _ = frozen(bench)
    supernet.materialize(copy.deepcopy(bench.model))
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in bench.model.state_dict().items())


@pytest.mark.parametrize(
    ("quantizer", "scale", "space"),
    [
        ("midrise", "row", "default"),
        ("midrise", "row", "structured"),
        ("lsq", "subgroup", "default"),
        ("minmax", "row", "default"),
    ],
)
def test_everything_moves_with_the_model_to_another_device(
    make_bench: Callable[..., Any], quantizer: str, scale: str, space: str
) -> None:
    """No tensor stays behind, frozen choices and stored ranges included: a GPU refuses two devices in one operation."""
    bench = make_bench(scale, 8, quantizer, "static", space)
    supernet, _ = frozen(bench)
    supernet.use_sample()
    simulated = supernet.materialize(copy.deepcopy(bench.model)).to("meta")
    ranges = [buffer for name, buffer in simulated.named_buffers() if name.endswith("input_range")]
    assert len(ranges) == len(bench.ranges) > 0
    for model in (supernet.to("meta"), simulated):
        tensors = [*model.parameters(), *model.buffers()]
        for module in model.modules():
            tensors += _tensors_in([value for name, value in vars(module).items() if name not in ("_parameters", "_buffers")])
        assert {tensor.device.type for tensor in tensors} == {"meta"}


def _tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Those that hide in attributes, dicts, lists, partials."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors_in(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)
        elif isinstance(value, partial):
            yield from _tensors_in([*value.args, *value.keywords.values()])


def test_a_supernet_restores_from_its_state(bench: Any) -> None:
    first, second = bench.supernet(), bench.supernet()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    second.load_state_dict(first.state_dict())
    for supernet in (first, second):
        supernet.freeze(bench.allocation())
    assert torch.equal(logits(first, bench.batch()), logits(second, bench.batch()))
