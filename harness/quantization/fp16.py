"""Weights in float16: 16 bits each."""

from harness.interfaces import Quantization
from harness.quantization._dense import Dense

plugin: Quantization = Dense("float16", 16)
