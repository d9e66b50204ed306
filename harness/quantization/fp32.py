"""Weights in float32: 32 bits each."""

from harness.interfaces import Quantization
from harness.quantization._dense import Dense

plugin: Quantization = Dense("float32", 32)
