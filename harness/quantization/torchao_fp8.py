"""torchao's float8 weights (e4m3): as many bits as `torchao8`, finer near zero and coarser far from it."""

from harness.interfaces import Quantization
from harness.quantization._torchao import TorchAo

plugin: Quantization = TorchAo("torchao_fp8", "Float8WeightOnlyConfig", "float")
