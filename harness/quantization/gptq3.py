"""GPTQ at 3 bits per weight."""

from harness.interfaces import Quantization
from harness.quantization._gptq import Gptq

plugin: Quantization = Gptq(3)
