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
