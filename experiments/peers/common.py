"""What the tools' scripts share: read the prepared inputs, predict, and write the result. No autoquant: it is not installed here.

Every script is started as `SCRIPT INPUTS OUTPUT SETTING` by run.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

INPUTS, OUTPUT, SETTING = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
FACTS = json.loads((INPUTS / "inputs.json").read_text("utf-8"))
BATCH = 16
os.environ["HF_HUB_OFFLINE"] = "1"


def arrays(name: str) -> dict[str, np.ndarray]:
    """`calibration` or `evaluation`: input_ids, attention_mask, token_type_ids (if the model has them) and labels."""
    return dict(np.load(INPUTS / f"{name}.npz"))


def batches(name: str):
    """The same as torch batches of 16, each cut to its longest text; labels are among them."""
    import torch

    whole = arrays(name)
    for start in range(0, len(whole["labels"]), BATCH):
        part = {key: value[start : start + BATCH] for key, value in whole.items()}
        longest = int(part["attention_mask"].sum(axis=1).max())
        yield {key: torch.from_numpy(v if key == "labels" else v[:, :longest].copy()) for key, v in part.items()}


def load_teacher():
    """The full-precision transformers classifier."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(FACTS["threads"])
    return AutoModelForSequenceClassification.from_pretrained(
        FACTS["teacher"], attn_implementation="eager", dtype=torch.float32
    ).eval()


def without_labels(batch):
    return {key: value for key, value in batch.items() if key != "labels"}


def predict(model) -> np.ndarray:
    """Logits [texts, classes] of the evaluation texts."""
    import torch

    with torch.no_grad():
        return np.concatenate([model(**without_labels(batch)).logits.float().numpy() for batch in batches("evaluation")])


def linear_names(model) -> dict[str, str]:
    """Module name of every linear layer -> the name of its matrix."""
    import torch

    return {name: f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def saved_bytes(state) -> int:
    """Size of the file that torch.save makes of a state."""
    import torch

    path = OUTPUT / "model.pt"
    torch.save(state, path)
    return path.stat().st_size


class Stopwatch:
    """Seconds of the tool itself: neither loading nor evaluation."""

    def __enter__(self) -> Stopwatch:
        self.began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.began


def peak_mib() -> float:
    """The largest resident set of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def finish(
    tool: str,
    version: str,
    bits: dict[str, int],
    own_file_bytes: int,
    seconds: float,
    peak: float,
    logits: np.ndarray,
    activations: str,
    group_size: dict[str, int] | None = None,
) -> None:
    """Write result.json and logits.npy. `bits`: matrix name -> width of its codes; what is not in it stayed float.

    `group_size`: matrix name -> inputs that share a scale, for those with more than one scale a row.
    """
    np.save(OUTPUT / "logits.npy", logits.astype(np.float32))
    result = {
        "tool": tool,
        "version": version,
        "setting": SETTING,
        "bits": bits,
        "group_size": group_size or {},
        "own_file_bytes": own_file_bytes,
        "seconds": seconds,
        "peak_mib": peak,
        "activations": activations,
    }
    (OUTPUT / "result.json").write_text(json.dumps(result, indent=1, sort_keys=True), "utf-8")
