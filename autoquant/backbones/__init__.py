"""Where are a model's matrices, heads and blocks? One file an architecture; the table maps `model_type` to it."""

from autoquant.backbones.base import Backbone
from autoquant.backbones.bert import BERT

BACKBONES: dict[str, Backbone] = {"bert": BERT}

__all__ = ["BACKBONES", "Backbone"]
