"""autoquant: a BERT-family model, some text and a size budget in; the most accurate packed model that fits out.

    import autoquant

    result = autoquant.search(model, train, evaluation, budget=autoquant.SizeBudget.mib(6))
    result.load().predict(["a charming film"])
"""

from __future__ import annotations

from typing import Any

from autoquant.core.cost import SizeBudget
from autoquant.core.errors import AutoquantError
from autoquant.registration import register

__all__ = ["AutoquantConfig", "AutoquantError", "SizeBudget", "apply", "load", "search"]

register()


def __getattr__(name: str) -> Any:
    """The heavy parts are imported on first use, so that `autoquant --help` stays quick."""
    if name in ("search", "apply"):
        from autoquant import pipeline

        return getattr(pipeline, name)
    if name == "load":
        from autoquant.inference import load

        return load
    if name == "AutoquantConfig":
        from autoquant.pack.transformers_quantizer import AutoquantConfig

        return AutoquantConfig
    raise AttributeError(f"module 'autoquant' has no attribute '{name}'")
