"""What can a person ask for? plan, search, pareto, apply ...: typed dataclasses, one a command."""

from __future__ import annotations

import functools
import operator
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from autoquant.cli.models import Apply, Finetune, Plan, Refine, Search
from autoquant.cli.results import Bench, Evaluate, Export, Report
from autoquant.cli.studies import Compare, Pareto, ParetoWorker, Select
from autoquant.core.errors import AutoquantError
from autoquant.core.settings import available_presets, load_preset

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130

Command = (
    Plan | Finetune | Search | Apply | Refine | Evaluate | Pareto | ParetoWorker | Compare | Select | Report | Export | Bench
)


def _preset_in(arguments: Sequence[str]) -> str:
    """The value of the last --preset, needed before the other options so that its settings become their defaults."""
    name = "default"
    for index, argument in enumerate(arguments):
        if argument == "--preset" and index + 1 < len(arguments):
            name = arguments[index + 1]
        elif argument.startswith("--preset="):
            name = argument.partition("=")[2]
    return name


def parse(arguments: Sequence[str]) -> Command:
    """Arguments -> a command; raises SystemExit for wrong usage and SpaceError for an unknown preset."""
    recipe = load_preset(_preset_in(arguments))
    finetune = Finetune(output=tyro.MISSING, teacher=recipe.teacher)
    commands = {
        "plan": Annotated[Plan, tyro.conf.subcommand("plan")],
        "finetune": Annotated[Finetune, tyro.conf.subcommand("finetune", default=finetune)],
        "search": Annotated[Search, tyro.conf.subcommand("search", default=Search(recipe=recipe))],
        "apply": Annotated[Apply, tyro.conf.subcommand("apply")],
        "refine": Annotated[Refine, tyro.conf.subcommand("refine")],
        "evaluate": Annotated[Evaluate, tyro.conf.subcommand("evaluate")],
        "pareto": Annotated[Pareto, tyro.conf.subcommand("pareto", default=Pareto(budgets=tyro.MISSING, recipe=recipe))],
        "pareto-worker": Annotated[ParetoWorker, tyro.conf.subcommand("pareto-worker")],
        "compare": Annotated[Compare, tyro.conf.subcommand("compare", default=Compare(recipe=recipe))],
        "select": Annotated[Select, tyro.conf.subcommand("select")],
        "report": Annotated[Report, tyro.conf.subcommand("report")],
        "export": Annotated[Export, tyro.conf.subcommand("export")],
        "bench": Annotated[Bench, tyro.conf.subcommand("bench")],
    }
    union = functools.reduce(operator.or_, commands.values())
    description = f"Mixed-precision search for BERT-family models under a size budget. Presets: {', '.join(available_presets())}."
    try:
        command: Command = tyro.cli(union, args=list(arguments), prog="autoquant", description=description)
    except BrokenPipeError:  # `autoquant --help | head`: who reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more as it flushes at its end
        raise SystemExit(0) from None
    return command


def main(arguments: Sequence[str] | None = None) -> None:
    """The `autoquant` command: exit code 0, 2 for input that cannot work (one line on stderr), 130 after Ctrl-C."""
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        from autoquant.core.progress import TerminalProgress

        command.run(TerminalProgress())
    except AutoquantError as error:
        print(f"autoquant: {error}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except KeyboardInterrupt:
        print("autoquant: interrupted; the run goes on with --resume.", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
