"""HQQ at 1 bit per weight."""

from harness.interfaces import Quantization
from harness.quantization._hqq import Hqq

plugin: Quantization = Hqq(1)
