"""A machine is checked before anything starts, and then sets what torch keeps for the process."""

import pytest
import torch

from autoquant.core.errors import RunError
from autoquant.machine import Machine
from autoquant.supernet.mixing import KERNELS


@pytest.mark.parametrize("machine", [Machine(device="nowhere"), Machine(threads=-1), Machine(checkpoint_seconds=-1.0)])
def test_a_machine_that_cannot_be_is_refused(machine: Machine) -> None:
    with pytest.raises(RunError):
        machine.check()


def test_a_device_without_64_bit_floats_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_doubles(*_: object, dtype: torch.dtype, **__: object) -> None:  # as torch says it of mps
        raise TypeError(f"Cannot convert a MPS Tensor to {dtype} dtype as the MPS framework doesn't support float64.")

    monkeypatch.setattr(torch, "ones", no_doubles)
    with pytest.raises(RunError, match=r"--device mps .*float64.*give auto or cpu"):
        Machine(device="mps").check()


@pytest.mark.parametrize(("gpus", "rank", "device"), [(0, "1", "cpu"), (4, "3", "cuda:3"), (1, "3", "cuda:0"), (2, "", "cuda:0")])
def test_auto_is_a_gpu_of_the_process_own(gpus: int, rank: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(1))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert Machine().torch_device() == torch.device(device)


def test_what_torch_keeps_for_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KERNELS, "compile", True)
    before = torch.get_num_threads()
    try:
        Machine(threads=1, compile=False).configure()
        assert (torch.get_num_threads(), KERNELS.compile) == (1, False)
        Machine().configure()
        assert (torch.get_num_threads(), KERNELS.compile) == (1, True)  # 0 threads: as they are
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("precision", "has", "emulates"), [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)])
def test_bfloat16_without_instructions(precision: str, has: bool, emulates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    assert Machine(device="cpu", precision=precision).emulates_bfloat16() is emulates
