"""The protocol of an exporter: a packed folder in, one more file in it out, and a way to run that file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

Runner = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # the model's inputs [batch, tokens] int64 -> logits [batch, classes]


class Exporter(Protocol):
    """One file format; what a format leaves to choose is another row of the table."""

    @property
    def file_name(self) -> str:
        """The file in the packed folder."""
        ...

    @property
    def activation_bits(self) -> int:
        """Of the activations at run time: 8, or 32 where they are floats."""
        ...

    def check(self) -> None:
        """Raise ModelError, with the command that installs it, for a package that is missing."""
        ...

    def export(self, folder: Path) -> Path:
        """Write the file of a packed folder atomically; equal folders give equal bytes.

        Raises ModelError or CheckpointError for a folder that cannot be exported.
        """
        ...

    def open(self, path: Path, threads: int = 0) -> Runner:
        """Load a file that was exported; `threads` 0 leaves the runtime's choice. Raises ModelError for any other."""
        ...
