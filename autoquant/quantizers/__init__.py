"""How does a float become a code? One file a scheme, one protocol; the table drives the contract tests."""

from autoquant.quantizers.base import Quantizer
from autoquant.quantizers.lsq import Lsq
from autoquant.quantizers.midrise import Midrise
from autoquant.quantizers.minmax import MinMax

QUANTIZERS: dict[str, Quantizer] = {"midrise": Midrise(), "lsq": Lsq(), "minmax": MinMax()}

__all__ = ["QUANTIZERS", "Lsq", "Midrise", "MinMax", "Quantizer"]
