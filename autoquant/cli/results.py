"""Commands on what a run has made: evaluate, report, export, bench."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import tyro

from autoquant.cli.options import DataOptions, Flat, Glue
from autoquant.core.errors import DataError

if TYPE_CHECKING:
    from autoquant.core.progress import Progress
    from autoquant.tasks.data import TaskData


@dataclass(frozen=True)
class Evaluate:
    """Measure a packed folder on the evaluation rows of a task, as JSON.

    Example: autoquant evaluate runs/demo/model
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """A packed folder, such as the model/ of a run."""
    data: Annotated[DataOptions, Flat] = field(default_factory=DataOptions)
    format: Literal["safetensors", "onnx"] = "safetensors"
    """Which of its files: the packed one, or the one that export wrote."""
    tail: Literal["int8", "fp32"] = "int8"
    """Of the ONNX file: model.onnx has int8, model_fp32.onnx fp32."""
    tuning: bool = False
    """Measure on the fifth of the training file that the trials of a tuned sweep are judged by."""

    def run(self, progress: Progress) -> None:
        data = self.data.load().for_tuning() if self.tuning else self.data.load()
        if self.format == "onnx":
            from autoquant.deploy import evaluate_exported

            metrics = evaluate_exported(self.folder, f"{self.format}-{self.tail}", data)
        else:
            from autoquant.pipeline import evaluate_folder

            metrics = evaluate_folder(self.folder, data)
        progress.say(json.dumps(metrics, sort_keys=True))


@dataclass(frozen=True)
class Report:
    """Write report.html of a finished run or a sweep again; both write it themselves when they end.

    Example: autoquant report runs/demo
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """A run directory or a sweep's."""

    def run(self, progress: Progress) -> None:
        from autoquant.reports.page import write_report

        progress.say(f"Wrote {write_report(self.folder)}")


@dataclass(frozen=True)
class Export:
    """Write model/model.onnx (--tail fp32: model_fp32.onnx), one file of the packed size for ONNX Runtime, and measure it.

    Example: autoquant export runs/demo --format onnx
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    """A finished run."""
    format: Literal["onnx"] = "onnx"
    """What to write."""
    tail: Literal["int8", "fp32"] = "int8"
    """int8: activations of 8 bits at run time, fastest; fp32: exact."""
    data: Annotated[DataOptions, Flat] = field(default_factory=DataOptions)

    def run(self, progress: Progress) -> None:
        from autoquant.deploy import export_run

        export_run(self.run_dir, f"{self.format}-{self.tail}", _data_of_run(self.run_dir, self.data, progress), progress)


@dataclass(frozen=True)
class Bench:
    """Time the exported file against torch, ONNX Runtime fp32 and ONNX Runtime dynamic int8 of the run's own teacher.

    Example: autoquant bench runs/demo --threads 1
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    """A finished run that was exported."""
    threads: int = 1
    """CPU threads of every contender."""
    rounds: int = 15
    """How often each is timed, in turns; medians are shown."""
    json: bool = False
    """Print JSON instead of a table."""
    data: Annotated[DataOptions, Flat] = field(default_factory=DataOptions)

    def run(self, progress: Progress) -> None:
        from autoquant.bench import bench_run, show
        from autoquant.core.progress import SilentProgress

        quiet = SilentProgress() if self.json else progress
        data = _data_of_run(self.run_dir, self.data, quiet)
        result = bench_run(self.run_dir, data, threads=self.threads, rounds=self.rounds, progress=quiet)
        if self.json:
            print(json.dumps(result, indent=2, sort_keys=True))
        else:
            show(result, progress)


def _data_of_run(run_dir: Path, options: DataOptions, progress: Progress) -> TaskData | None:
    """The data of a finished run: as given, or as the run had it; None where that is gone, or was rows in memory."""
    import dataclasses

    from autoquant.deploy import finished_run

    run = finished_run(run_dir)
    task, source = run.result()["task"], run.info().get("data_source")
    if options.task is None and options.train_file is None and options.eval_file is None:
        if source is not None and options.data_dir is None:
            try:
                return DataOptions.recorded(source).load()
            except DataError as error:
                progress.say(f"Note: the run's data is not where it was. {error}")
                return None
        if task == "files":
            return None
        options = dataclasses.replace(options, task=task if task in get_args(Glue) else None)
    return options.load()
