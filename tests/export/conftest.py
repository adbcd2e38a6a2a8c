"""Packed folders to export."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from export_folders import packed_folder


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """`make_folder(model_type, scale, dead, activation_bits, outputs, seed)` writes a packed folder."""
    return partial(packed_folder, tmp_path / "model")
