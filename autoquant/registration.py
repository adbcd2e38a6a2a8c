"""`import autoquant` makes transformers know packed models, without importing transformers: that takes seconds.

The methods of quantization are listed in `transformers.quantizers.auto`. Where that is imported already, ours joins at once,
otherwise right after it is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec

REGISTRY = "transformers.quantizers.auto"


def register() -> None:
    """Register autoquant's quantization method with transformers, now or when it is imported."""
    if REGISTRY in sys.modules:
        _join()
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def _join() -> None:
    importlib.import_module("autoquant.pack.transformers_quantizer")  # registers its classes


class _Watch:
    """A finder that finds no module itself; it has the registry's own loader followed by ours."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenJoin(spec.loader)  # type: ignore[assignment]
        return spec


class _ThenJoin:
    """The registry's loader, and then our classes join it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        _join()
