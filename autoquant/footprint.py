"""How long does a model take to load, and how much memory at most? Run in a process of its own, which prints JSON.

    python -m autoquant.footprint model.onnx 1 32
    python -m autoquant.footprint teacher/ 1 32

The numbers are threads, and the tokens of the one text that is run.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np


def peak_mib() -> float:
    """The largest resident set of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent had before this program started
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def load_onnx(path: str, threads: int, tokens: int) -> None:
    """Load a session and run one text."""
    from autoquant.export.onnx.session import open_session

    before, start = peak_mib(), time.perf_counter()
    session = open_session(path, threads)
    seconds = time.perf_counter() - start
    session.run(None, {node.name: np.ones((1, tokens), np.int64) for node in session.get_inputs()})
    report(seconds, before)


def load_torch(path: str, threads: int, tokens: int) -> None:
    """The same of a transformers folder in float32."""
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    before, start = peak_mib(), time.perf_counter()
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        model(input_ids=torch.ones(1, tokens, dtype=torch.int64))
    report(seconds, before)


def report(seconds: float, before: float) -> None:
    peak = peak_mib()
    print(json.dumps({"load_seconds": seconds, "peak_mib": peak, "model_mib": peak - before}))


if __name__ == "__main__":
    load = load_torch if Path(sys.argv[1]).is_dir() else load_onnx
    load(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
