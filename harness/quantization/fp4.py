"""4-bit floating point: sign, exponent and mantissa instead of quantiles."""

from harness.interfaces import Quantization
from harness.quantization._bitsandbytes import FourBit

plugin: Quantization = FourBit("fp4")
