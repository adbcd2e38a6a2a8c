"""How does a float become a code? One file a scheme, one protocol; the table drives the contract tests."""

from autoquant.quantizers.base import Quantizer
from autoquant.quantizers.midrise import Midrise

QUANTIZERS: dict[str, Quantizer] = {"midrise": Midrise()}

__all__ = ["QUANTIZERS", "Midrise", "Quantizer"]
