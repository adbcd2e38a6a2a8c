"""Where are a model's matrices, heads and blocks? One file an architecture; the table maps `model_type` to it."""

from autoquant.backbones.base import Backbone
from autoquant.backbones.bert import BERT
from autoquant.backbones.distilbert import DISTILBERT
from autoquant.backbones.roberta import ROBERTA

BACKBONES: dict[str, Backbone] = {"bert": BERT, "distilbert": DISTILBERT, "roberta": ROBERTA}

__all__ = ["BACKBONES", "Backbone"]
