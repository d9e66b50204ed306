"""GPTQ at 8 bits per weight."""

from harness.interfaces import Quantization
from harness.quantization._gptq import Gptq

plugin: Quantization = Gptq(8)
