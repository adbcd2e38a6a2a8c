"""Options that several commands share: data, budget and machine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from autoquant.core.errors import BudgetError, DataError

if TYPE_CHECKING:
    from autoquant.machine import Machine
    from autoquant.pipeline import Budget
    from autoquant.tasks.data import TaskData

Glue = Literal["sst2", "cola", "mrpc", "rte", "stsb", "qnli", "qqp", "mnli", "wnli"]
Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class DataOptions:
    """Text and labels: a GLUE task, two files of yours, or nothing for the embedded movie reviews."""

    task: Glue | None = None
    """GLUE task, from --data-dir (or AUTOQUANT_GLUE), else through the hub."""
    data_dir: Path | None = None
    """Folder with GLUE tasks as TSV/CSV/JSON/Parquet files, e.g. glue/SST-2/{train,dev}.tsv."""
    train_file: Path | None = None
    """Training rows of your own task (TSV, CSV, JSON or Parquet)."""
    eval_file: Path | None = None
    """Evaluation rows; checked at the start, measured on at the end."""
    text_column: tuple[str, ...] = ("text",)
    """One text column, or two for pairs."""
    label_column: str = "label"
    """Its labels: any different values are classes; numbers that are not all whole make it a regression."""
    more_texts: Path | None = None
    """Further texts, in the same columns but without labels: recovery learns the full-precision model's answers to them too."""
    train_rows: int | None = None
    """Use only this many training rows: those with the smallest sha256 of the text."""

    def load(self) -> TaskData:
        """Read the data. Raises DataError in one line for anything malformed."""
        import dataclasses

        from autoquant.tasks.load import SMALLEST_TRAIN, check_training, load_default, load_files, load_glue, with_texts

        if self.train_rows is not None and self.train_rows < SMALLEST_TRAIN:
            raise DataError(f"--train-rows {self.train_rows} is too few: training takes at least {SMALLEST_TRAIN}.")
        if (self.train_file is None) != (self.eval_file is None):
            raise DataError("Give both --train-file and --eval-file.")
        if self.train_file and self.task:
            raise DataError("Give either --task or --train-file, not both.")
        columns = (self.text_column, self.label_column)
        if not self.train_file and columns != (DataOptions.text_column, DataOptions.label_column):
            raise DataError("--text-column and --label-column are for --train-file and --eval-file: leave them out.")
        if self.data_dir and not self.task:
            raise DataError(f"--data-dir {self.data_dir} needs --task beside it: say which GLUE task to read there.")
        if self.train_file and self.eval_file:
            data = load_files(self.train_file, self.eval_file, self.text_column, self.label_column)
        elif self.task:
            data = load_glue(self.task, self.data_dir)
        else:
            data = load_default()
        source = {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(self).items()}
        if self.more_texts is None:
            del source["more_texts"]  # studies that are older than it have none
        if self.train_rows is not None:
            data = dataclasses.replace(data, train=data.train.subsample(self.train_rows))
            check_training(data.train.labels, f"--train-rows {self.train_rows}")
        if self.more_texts:
            data = with_texts(data, self.more_texts)
        return dataclasses.replace(data, source=json.loads(json.dumps(source)))

    @classmethod
    def recorded(cls, source: Mapping[str, Any]) -> DataOptions:
        """Options as a study keeps them."""
        names = ("data_dir", "train_file", "eval_file", "more_texts")
        paths = {name: Path(source[name]) for name in names if source.get(name)}
        return cls(**{**source, **paths, "text_column": tuple(source["text_column"])})


@dataclass(frozen=True)
class BudgetOptions:
    """How large the result may be: one of --budget-mib and --budget-ratio, or none for a preset that fixes its own size."""

    budget_mib: float | None = None
    """Budget in MiB (1,048,576 bytes) of the whole model.safetensors."""
    budget_ratio: float | None = None
    """Budget as full-precision size divided by this."""
    count: Literal["file", "encoder"] = "file"
    """What counts: the whole file, or only codes and scales of the encoder."""

    def resolve(self) -> Budget | None:
        from autoquant.core.cost import SizeBudget

        if self.budget_mib is None and self.budget_ratio is None:
            return None
        if self.budget_mib is not None and self.budget_ratio is not None:
            raise BudgetError("Give one of --budget-mib and --budget-ratio, e.g. --budget-mib 6.")
        if not math.isfinite(self.budget_mib or self.budget_ratio or 0):
            raise BudgetError("--budget-mib and --budget-ratio take finite numbers, e.g. --budget-mib 6.")
        if self.budget_mib is not None:
            return SizeBudget.mib(self.budget_mib, self.count)
        ratio, count = float(self.budget_ratio or 0), self.count
        return lambda file, encoder: SizeBudget.ratio(ratio, file if count == "file" else encoder, count)


@dataclass(frozen=True)
class MachineOptions:
    """Where it computes."""

    device: str = "auto"
    """auto (a CUDA GPU, else the CPU), cpu, cuda, cuda:1 ..."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 autocast is faster on CPUs with bfloat16 instructions and on recent GPUs, slower on others."""
    compile: bool = True
    """Compile the mixing pass (needs a C++ compiler; falls back by itself)."""
    checkpoint_seconds: float = 60.0
    """How much work a kill may cost at most."""

    def resolve(self) -> Machine:
        import dataclasses

        from autoquant.machine import Machine

        return Machine(**dataclasses.asdict(self))


def numbers(texts: Sequence[str], option: str, example: str) -> list[float]:
    """`3,4 6` -> 3.0, 4.0, 6.0."""
    try:
        return [float(part) for text in texts for part in text.split(",") if part]
    except ValueError as error:
        raise BudgetError(f"{option} {' '.join(texts)} are not numbers: give e.g. {option} {example}.") from error
