"""4-bit NormalFloat, whose levels are quantiles of a normal distribution (QLoRA, arXiv:2305.14314)."""

from harness.interfaces import Quantization
from harness.quantization._bitsandbytes import FourBit

plugin: Quantization = FourBit("nf4")
