"""Where and how does a run compute?"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import torch

from autoquant.core.errors import RunError
from autoquant.supernet.mixing import KERNELS


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes."""

    device: str = "auto"
    threads: int = 0
    precision: str = "fp32"
    compile: bool = True
    checkpoint_seconds: float = 60.0

    def torch_device(self) -> torch.device:
        """The device asked for; `auto` is a CUDA GPU where there is one, else the CPU.

        Raises RunError if torch cannot compute on it in 64-bit floats, as sensitivities are summed: Apple's mps has none.
        """
        try:
            device = torch.device(_usual_device() if self.device == "auto" else self.device)
            torch.ones(1, dtype=torch.float64, device=device).item()
        except (RuntimeError, AssertionError, ImportError, TypeError) as error:  # torch raises any of these
            reason = str(error).strip().partition("\n")[0][:120]
            raise RunError(f"Cannot compute on --device {self.device} ({reason}): give auto or cpu.") from error
        return device

    def check(self) -> None:
        """Raise RunError for what no machine can do."""
        if self.threads < 0 or self.checkpoint_seconds < 0:
            raise RunError("--threads and --checkpoint-seconds must not be negative.")
        self.torch_device()

    def emulates_bfloat16(self) -> bool:
        """Whether bf16 is asked of a CPU without instructions for it: products then take many times as long."""
        if self.precision != "bf16" or self.torch_device().type != "cpu" or not torch.backends.mkldnn.is_available():
            return False
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()

    def identity(self) -> dict[str, Any]:
        """What of it decides a run's numbers, and so must be the same when it is resumed."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "checkpoint_seconds"}

    def configure(self) -> None:
        """Set what torch keeps for the whole process: threads, and whether the mixing passes are compiled."""
        KERNELS.compile = self.compile
        if self.threads:
            torch.set_num_threads(self.threads)


def _usual_device() -> str:
    """Not accelerate's choice, which joins torchrun's processes to a group: transformers then saves in the first alone."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
