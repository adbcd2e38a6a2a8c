"""The fused passes against torch's own autograd and against numbers worked out on paper."""

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from autoquant.quantizers import Midrise
from autoquant.supernet import mixing
from autoquant.supernet.mixing import Kernels, mix, mix_backward, mix_forward

WIDTHS = (1, 2, 4, 8)
has_compiler = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler")


def problem(rows: int, columns: int, widths: tuple[int, ...] = WIDTHS, seed: int = 0) -> tuple[Tensor, ...]:
    """Weights that fill the grids and go beyond them, [rows, columns]; scale, limit, offset and share, [rows, K]."""
    draw = torch.Generator().manual_seed(seed)
    grids = [Midrise().grid(width) for width in widths]
    limit = torch.tensor([grid.limit for grid in grids]).expand(rows, -1)
    offset = torch.tensor([grid.offset for grid in grids]).expand(rows, -1)
    weight = torch.randn(rows, columns, generator=draw)
    scale = (0.5 + torch.rand(rows, len(widths), generator=draw)) * 1.5 / limit
    share = torch.softmax(torch.randn(rows, len(widths), generator=draw), dim=1)
    return weight, scale, limit, offset, share


def reference(weight: Tensor, scale: Tensor, limit: Tensor, offset: Tensor, share: Tensor) -> Tensor:
    """K fake-quantised copies with a straight-through rounding, one autograd graph through all of them."""
    mixed = torch.zeros_like(weight)
    for k in range(scale.shape[1]):
        step, top, shift = scale[:, [k]], limit[:, [k]], offset[:, [k]]
        steps = (weight / step).clamp(-top - 0.5, top + 0.5)
        level = (torch.round(steps - shift) + shift).clamp(-top, top)
        mixed = mixed + share[:, [k]] * step * (steps + (level - steps).detach())
    return mixed


def gradients(function, arguments: tuple[Tensor, ...], weighting: Tensor) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
    """Output, then the gradients of its weighted sum: weight, scale, share."""
    weight, scale, limit, offset, share = (a.detach().clone() for a in arguments)
    leaves = [weight.requires_grad_(), scale.requires_grad_(), share.requires_grad_()]
    output = function(weight, scale, limit, offset, share)
    return output.detach(), *torch.autograd.grad((output * weighting).sum(), leaves)


@pytest.mark.parametrize(("rows", "columns", "widths"), [(1, 1, (8,)), (7, 33, (1, 2)), (150, 12, WIDTHS)])
def test_matches_autograd_through_copies(rows: int, columns: int, widths: tuple[int, ...]) -> None:
    arguments = problem(rows, columns, widths)
    weighting = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(gradients(mix, arguments, weighting), gradients(reference, arguments, weighting), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_by_hand() -> None:
    """Two bits at scale 1/2 hold 0.25 and 0.75, 8 bits at scale 1/4 hold quarters; the third weight is beyond the 2-bit grid."""
    weight = torch.tensor([[0.3, -0.6, 1.2, -0.1]])
    scale, share = torch.tensor([[0.5, 0.25]]), torch.tensor([[0.25, 0.75]])
    limit, offset = torch.tensor([[1.5, 127.0]]), torch.tensor([[0.5, 0.0]])
    grad = torch.tensor([[1.0, 2.0, -1.0, 4.0]])
    # 2 bits: 0.25, -0.75, 0.75, -0.25; 8 bits: 0.25, -0.5, 1.25, 0
    output = mix_forward(weight, scale, limit, offset, share)
    torch.testing.assert_close(output, torch.tensor([[0.25, -0.5625, 1.125, -0.0625]]))
    grad_weight, grad_scale, grad_share = mix_backward(weight, scale, limit, offset, share, grad)
    torch.testing.assert_close(grad_weight, torch.tensor([[1.0, 2.0, -0.75, 4.0]]))
    torch.testing.assert_close(grad_scale, torch.tensor([[-0.85, 1.5]]))
    torch.testing.assert_close(grad_share, torch.tensor([[-3.0, -2.0]]))


@pytest.mark.parametrize("width", WIDTHS)
def test_one_width_is_the_quantizer_that_packs(width: int) -> None:
    weight, scale, limit, offset, _ = problem(20, 31, (width,))
    quantised = Midrise().fake_quantize(weight, scale[:, 0], width)
    torch.testing.assert_close(mix(weight, scale, limit, offset, torch.ones(20, 1)), quantised, rtol=1e-6, atol=0)


def test_nothing_is_left_of_a_row_without_share() -> None:
    weight, scale, limit, offset, share = problem(3, 5)
    share[1] = 0.0
    grad_weight, grad_scale, grad_share = gradients(mix, (weight, scale, limit, offset, share), torch.ones(3, 5))[1:]
    assert not mix(weight, scale, limit, offset, share)[1].any()
    assert not grad_weight[1].any()
    assert not grad_scale[1].any()
    assert grad_share[1].any()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, grad = problem(10, 6), torch.randn(10, 6)
    monkeypatch.setattr(mixing, "CHUNK_ROWS", 3)
    kernels = Kernels()
    kernels.compile = False
    assert torch.equal(kernels.forward(*arguments), mix_forward(*arguments))
    for chunked, whole in zip(kernels.backward(*arguments, grad), mix_backward(*arguments, grad), strict=True):
        assert torch.equal(chunked, whole)


@has_compiler
def test_compiled_passes_match_the_eager_ones(caplog: pytest.LogCaptureFixture) -> None:
    kernels = Kernels()
    for rows, columns in ((96, 40), (70, 24)):
        arguments, grad = problem(rows, columns), torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(kernels.forward(*arguments), mix_forward(*arguments), atol=1e-6, rtol=1e-5)
        for ours, theirs in zip(kernels.backward(*arguments, grad), mix_backward(*arguments, grad), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert kernels.compile, caplog.text


def test_every_number_of_widths_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which a comparison of all methods has six: torch itself would stop at eight."""
    compiled, compiler = list[int](), torch.compile

    def counting(module: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        compiled.append(1)
        return module

    monkeypatch.setattr(mixing.torch, "compile", lambda function, dynamic: compiler(function, dynamic=dynamic, backend=counting))
    kernels = Kernels()
    for count in range(1, 12):
        arguments = problem(mixing.FEWEST_COMPILED_ROWS, 8, (1, 2, 3, 4, 8, 8, 8, 8, 8, 8, 8)[:count])
        kernels.forward(*arguments)
        with ThreadPoolExecutor(1) as other:  # as backward passes on a GPU have
            other.submit(kernels.backward, *arguments, torch.ones(mixing.FEWEST_COMPILED_ROWS, 8)).result()
    assert len(compiled) == 22


@pytest.mark.parametrize("at_call", [True, False])
def test_falls_back_with_a_word_when_the_compiler_fails(
    at_call: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no g++ here\nand a long trace")

    monkeypatch.setattr(mixing.torch, "compile", (lambda *_, **__: fail) if at_call else fail)
    kernels, arguments = Kernels(), problem(mixing.FEWEST_COMPILED_ROWS, 4)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(kernels.forward(*arguments), mix_forward(*arguments))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no g++ here" in caplog.text
    assert "g++" in caplog.text
    assert "long trace" not in caplog.text


def test_small_matrices_are_not_compiled(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(mixing.torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    arguments = problem(mixing.FEWEST_COMPILED_ROWS - 1, 4)
    assert torch.equal(Kernels().forward(*arguments), mix_forward(*arguments))
    assert not caplog.records
