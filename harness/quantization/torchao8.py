"""torchao's int8 weights: unlike with `int8`, activations are left as they are."""

from harness.interfaces import Quantization
from harness.quantization._torchao import TorchAo

plugin: Quantization = TorchAo("torchao8", "Int8WeightOnlyConfig", "uniform")
