"""What does searching cost? A supernet step against a step of the unmodified transformers model, and the knapsack.

    python experiments/bench_supernet.py --json

MiniLM's shape with random weights; batches of 32 texts padded to 32 tokens, every token another one; AdamW of both sides
included; the supernet mixes all widths softly and gets gradients of weights, embeddings, scales and logits in one step. The
sides take turns in one process and a ratio is the median over rounds, so that a busy machine disturbs both alike; memory is
the peak resident size of a process of its own each. `kd`: both sides with the teacher's forward and its distillation loss.
`as_run`: as searches run it, activations quantised, and products on both sides by oneDNN where that is exact and faster; all
else is measured with torch's own products.
`knapsack_gap`: how far below the bound that scipy.optimize.milp proves, relative to it.
`paid_*`: how many times as fast a step becomes by bfloat16 products (`--precision bf16`; of the step as searches run it), by the
teacher's outputs of a cache instead of its forward (as searches have them), and by sparse gradients and updates of the word
embedding (of the plain model: an upper bound for ours, whose rows learn by the size term too; not used).

What paid, by profile: mixing weights in two compiled passes instead of K copies under autograd; no slice of all rows, whose
backward fills zeros as large as the weight; a division a row instead of a weight in the mixture; the embedding's own backward
instead of an index's; and activations quantised in place (a third of the time, the same bits). So do the teacher's outputs of a
cache (1.3 times as fast), and bfloat16 where the CPU has it (1.5; an option). Sparse updates of the embedding do not (1.04). What
is left is the two passes themselves and the gradient of the mixed weight, an array more than a plain layer has.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from autoquant.backbones import BACKBONES
from autoquant.core.allocate import allocate
from autoquant.core.cost import ByteModel, ChoiceTable, choice_table
from autoquant.core.settings import DistillationSettings
from autoquant.core.space import load_space
from autoquant.footprint import peak_mib
from autoquant.quantizers import QUANTIZERS
from autoquant.supernet.build import Supernet
from autoquant.supernet.calibration import initial_scales
from autoquant.training.distillation import TeacherBatch, distillation_loss
from autoquant.training.products import fast_products

BATCH, TOKENS, TEMPERATURE = 32, 32, 0.5
LABELS = DistillationSettings(logits=0.0, hidden=0.0, cross_entropy=1.0)
TEACHER = DistillationSettings()
REQUIRED = {"step_ratio_heads": 1.25, "step_ratio_128": 1.35, "memory_ratio": 1.5, "knapsack_seconds": 1.0, "knapsack_gap": 1e-3}

Step = Callable[[], None]
Outputs = Callable[[], TeacherBatch]


@dataclass(frozen=True)
class Options:
    json: bool = False
    """Print one JSON object and nothing else."""
    threads: int = 2
    rounds: int = 15
    activation_bits: int = 32
    """8 adds the simulation of 8-bit activations to the supernet's side."""
    only: tuple[str, ...] = ()
    """Measure these steps only: heads, 128, default, as-run, kd, paid."""
    knapsack: bool = True
    memory: str | None = None
    """Used by the child processes: take a few steps of this side and print the peak resident size."""


def source() -> BertForSequenceClassification:
    """all-MiniLM-L6-v2's shape."""
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return BertForSequenceClassification(BertConfig(**shape, num_labels=2)).eval()


def batch() -> dict[str, Tensor]:
    ids = torch.randperm(30000, generator=torch.Generator().manual_seed(0))[: BATCH * TOKENS].view(BATCH, TOKENS) + 500
    mask, types = torch.ones_like(ids), torch.zeros_like(ids)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": torch.arange(BATCH) % 2}


def teacher_of(model: nn.Module) -> Outputs:
    """The teacher's forward."""
    inputs = {name: value for name, value in batch().items() if name != "labels"}

    @torch.no_grad()
    def outputs() -> TeacherBatch:
        out = model(**inputs, output_hidden_states=True)
        return TeacherBatch(out.logits, torch.stack(out.hidden_states))

    return outputs


def cached(outputs: Outputs) -> Outputs:
    kept = outputs()
    return lambda: kept


def plain_step(outputs: Outputs | None = None, sparse: bool = False) -> Step:
    """The unmodified model: forward, backward, AdamW; `sparse`: the word embedding's rows by SparseAdam."""
    model, data = source(), batch()
    words = model.bert.embeddings.word_embeddings
    words.sparse = sparse
    dense = [parameter for parameter in model.parameters() if not (sparse and parameter is words.weight)]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(dense, lr=1e-5, fused=True)]
    if sparse:
        optimizers.append(torch.optim.SparseAdam([words.weight], lr=1e-5))

    def step() -> None:
        distillation_loss(model, data, outputs and outputs(), TEACHER if outputs else LABELS).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def supernet_step(space: str, activation_bits: int, outputs: Outputs | None = None) -> Step:
    """The relaxed model: soft sample of all widths, forward, backward, size, AdamW of weights and scales, Adam of logits."""
    supernet, data = supernet_of(space, activation_bits), batch()
    groups: list[dict[str, Any]] = [
        {"params": supernet.weight_parameters()},
        {"params": supernet.scale_parameters(), "weight_decay": 0.0},
    ]
    weights = torch.optim.AdamW(groups, lr=1e-5, fused=True)
    bits = torch.optim.Adam(supernet.architecture_parameters(), lr=1e-3)

    def step() -> None:
        supernet.use_mixture(TEMPERATURE, hard=False)
        loss = distillation_loss(supernet, data, outputs and outputs(), TEACHER if outputs else LABELS)
        (loss + supernet.expected_bytes() / 1e9).backward()
        for optimizer in (weights, bits):
            optimizer.step()
            optimizer.zero_grad()

    return step


def as_run(step: Step) -> Step:
    """A step with the matrix products that searches use."""

    def fast() -> None:
        with fast_products("cpu", TOKENS):
            step()

    return fast


def bf16(step: Step) -> Step:
    """A step with products of bfloat16."""

    def mixed() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            step()

    return mixed


def supernet_of(space_name: str, activation_bits: int) -> Supernet:
    model, backbone, space, quantizer = source(), BACKBONES["bert"], load_space(space_name), QUANTIZERS["midrise"]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    counts = np.arange(model.config.vocab_size)[::-1]
    partitions = space.partition(backbone.matrices(model.config, dict(shapes)), model.config.num_attention_heads, counts)
    table = choice_table(ByteModel(partitions, {}, space.scale, ""))
    scales = initial_scales(model, table, quantizer, {}, per_row=True)
    return Supernet(model, backbone, table, quantizer, scales, activation_bits)


# Measuring ------------------------------------------------------------------------------------------------------------


def ratios(steps: dict[str, Step], rounds: int) -> dict[str, tuple[float, float]]:
    """Name -> (median ratio to the first step, median seconds), the steps taking turns."""
    for step in steps.values():
        for _ in range(3):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    base = next(iter(seconds.values()))
    return {
        name: (statistics.median(a / b for a, b in zip(values, base, strict=True)), statistics.median(values))
        for name, values in seconds.items()
    }


def steps_of(options: Options) -> dict[str, float]:
    wanted = options.only or ("heads", "128", "default", "as-run", "kd", "paid")
    result: dict[str, float] = {}
    spaces = {"heads": "heads", "128": "groups128", "default": "default"}
    steps = {name: supernet_step(space, options.activation_bits) for name, space in spaces.items() if name in wanted}
    if steps:
        measured = ratios({"plain": plain_step(), **steps}, options.rounds)
        result |= {f"step_ratio_{name}": ratio for name, (ratio, _) in measured.items() if name != "plain"}
        result |= {f"seconds_{name}": seconds for name, (_, seconds) in measured.items()}
        steps.clear()
    if "as-run" in wanted:
        fast = {"plain_as_run": as_run(plain_step()), "as_run": as_run(supernet_step("heads", 8))}
        measured = ratios(fast, options.rounds)
        result["step_ratio_as_run"] = measured["as_run"][0]
        result |= {f"seconds_{name}": seconds for name, (_, seconds) in measured.items()}
    if "kd" in wanted:
        outputs = teacher_of(source())
        pair = {"plain_kd": plain_step(outputs), "kd": supernet_step("heads", options.activation_bits, outputs)}
        measured = ratios(pair, options.rounds)
        result["step_ratio_kd"] = measured["kd"][0]
        result |= {f"seconds_{name}": seconds for name, (_, seconds) in measured.items()}
    return result | (paid(options) if "paid" in wanted else {})


def paid(options: Options) -> dict[str, float]:
    """What makes a step how many times as fast."""
    outputs, step = teacher_of(source()), as_run(supernet_step("heads", 8))
    pairs = {
        "bf16": (bf16(step), step),
        "cached_teacher": (supernet_step("heads", 8, cached(outputs)), supernet_step("heads", 8, outputs)),
        "sparse_embedding": (plain_step(sparse=True), plain_step()),
    }
    measured = {name: ratios({"with": fast, "without": slow}, options.rounds) for name, (fast, slow) in pairs.items()}
    return {f"paid_{name}": both["without"][0] for name, both in measured.items()}


def peak_bytes(side: str, options: Options) -> int:
    """Peak resident size of a child process that takes a few steps of one side."""
    command = [sys.executable, __file__, "--memory", side, "--threads", str(options.threads)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(out.split()[-1])


def child(side: str) -> None:
    step = plain_step() if side == "plain" else supernet_step(side, 32)
    for _ in range(5):
        step()
    print(int(peak_mib() * 2**20))


def knapsack(groups: int = 10_000, widths: tuple[int, ...] = (0, 1, 2, 3, 4, 8)) -> dict[str, float]:
    """Bell-shaped values of sub-groups of different sizes under half of the bytes: seconds, and the gap to the proven bound."""
    draw = np.random.default_rng(0)
    rows, columns = draw.integers(1, 65, groups), draw.choice([384, 1536], groups)
    sizes = rows[:, None] * ((columns[:, None] * np.array(widths) + 7) // 8 + 2 * (np.array(widths) > 0))
    noise = draw.lognormal(0.0, 0.1, sizes.shape)
    values = -draw.lognormal(0.0, 1.5, (groups, 1)) * (rows * columns)[:, None] * 0.25 ** np.array(widths, dtype=float) * noise
    table = ChoiceTable((), widths, sizes, np.ones(sizes.shape, dtype=bool), rows * columns, 0)
    budget = int(0.25 * sizes.max(axis=1).sum())
    start = time.perf_counter()
    choice = allocate(values, table, budget)
    seconds = time.perf_counter() - start
    count = values.size
    each = csr_array((np.ones(count), (np.repeat(np.arange(groups), len(widths)), np.arange(count))), shape=(groups, count))
    limits = LinearConstraint(vstack([each, csr_array(sizes.reshape(1, -1))]), [1] * groups + [0], [1] * groups + [budget])
    options = {"mip_rel_gap": 1e-5, "time_limit": 120.0}
    proven = milp(-values.ravel(), constraints=limits, integrality=np.ones(count), bounds=Bounds(0, 1), options=options)
    bound = -proven.mip_dual_bound
    gap = (bound - values[np.arange(groups), choice].sum()) / abs(bound)
    return {"knapsack_seconds": seconds, "knapsack_gap": float(gap)}


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    if options.memory:
        return child(options.memory)
    result = steps_of(options)
    if not options.only:
        peaks = {side: peak_bytes(side, options) for side in ("plain", "heads")}
        result |= {"memory_ratio": peaks["heads"] / peaks["plain"], **{f"peak_bytes_{k}": v for k, v in peaks.items()}}
    if options.knapsack:
        result |= knapsack()
    result["threads"] = options.threads
    if options.json:
        print(json.dumps(result, indent=1))
        return None
    for name, value in result.items():
        required = f"   (required: at most {REQUIRED[name]:g})" if name in REQUIRED else ""
        print(f"{name:22} {value:12.4g}{required}")
    return None


if __name__ == "__main__":
    main()
