"""How does a frozen allocation get its accuracy back? One file a refiner; each works in place on a frozen supernet."""

from autoquant.refine.annealed import Annealed
from autoquant.refine.base import RefineProblem, Refiner
from autoquant.refine.finetune import Finetune
from autoquant.refine.layerwise import LayerWise
from autoquant.refine.mrem import SequentialMrem
from autoquant.refine.mrem_parallel import ParallelMrem
from autoquant.refine.prequant import PreQuant
from autoquant.refine.quant_noise import QuantNoise
from autoquant.refine.retrain import Retrain
from autoquant.refine.ternarybert import TernaryBert

REFINERS: dict[str, Refiner] = {
    "retrain": Retrain(),
    "annealed": Annealed(),
    "ternarybert": TernaryBert(),
    "quant-noise": QuantNoise(),
    "prequant": PreQuant(),
    "finetune": Finetune(),
    "mrem-s": SequentialMrem(),
    "mrem-p": ParallelMrem(),
    "layer-wise": LayerWise(),
}

__all__ = ["REFINERS", "RefineProblem", "Refiner"]
