"""GPTQ at 2 bits per weight."""

from harness.interfaces import Quantization
from harness.quantization._gptq import Gptq

plugin: Quantization = Gptq(2)
