"""HQQ at 2 bits per weight."""

from harness.interfaces import Quantization
from harness.quantization._hqq import Hqq

plugin: Quantization = Hqq(2)
