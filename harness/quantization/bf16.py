"""Weights in bfloat16: 16 bits each."""

from harness.interfaces import Quantization
from harness.quantization._dense import Dense

plugin: Quantization = Dense("bfloat16", 16)
