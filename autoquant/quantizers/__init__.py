"""How does a float become a code? One file a scheme, two protocols; the table drives the contract tests."""

from autoquant.quantizers.base import Quantizer, UniformQuantizer
from autoquant.quantizers.codebook import CodebookQuantizer
from autoquant.quantizers.gobo import Gobo
from autoquant.quantizers.lsq import Lsq
from autoquant.quantizers.midrise import Midrise
from autoquant.quantizers.minmax import MinMax
from autoquant.quantizers.pq import Pq
from autoquant.quantizers.twn import Twn

QUANTIZERS: dict[str, Quantizer] = {
    "midrise": Midrise(),
    "lsq": Lsq(),
    "minmax": MinMax(),
    "twn": Twn(),
    "gobo": Gobo(),
    "pq": Pq(),
}

__all__ = ["QUANTIZERS", "CodebookQuantizer", "Lsq", "Midrise", "MinMax", "Quantizer", "UniformQuantizer"]
