"""HQQ (Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog/): a uniform grid per group of weights.

The zero points are fitted to the weights, without data.
Through the library itself: transformers 5 cannot load what its own `HqqConfig` asks for. Quantizing is part of loading;
nothing is read from a quantized checkpoint, which transformers would load as random weights without an error.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from harness.errors import SpecError
from harness.interfaces import About
from harness.quantization._dense import load
from harness.quantization._packages import library
from harness.spec import Dtype, Value

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CODES_PER_WORD = {8: (1, 8), 4: (2, 8), 3: (10, 32), 2: (4, 8), 1: (8, 8)}
"""How many codes are packed into a word of how many bits; ten 3-bit codes take 32, not 30."""
WIDTH = {"fp32": 32, "bf16": 16, "fp16": 16}


class Params(Value):
    group_size: int = Field(64, gt=0, multiple_of=8)
    """Neighbours that share a scale and a zero point; where they do not divide a row, groups run on into the next."""


class Hqq:
    """All linear layers but the head at one bit-width. Scales and zero points are in the dtype that it computes in."""

    params = Params
    needs: Literal["any", "cuda"] = "any"
    packages: tuple[str, ...] = ("hqq",)
    about = About(grid="uniform", kernels="PyTorch, dequantizing", merges="requantizes")

    def __init__(self, bits: Literal[8, 4, 3, 2, 1]) -> None:
        self.bits = float(bits)

    def load(
        self,
        folder: str,
        params: Value,
        *,
        revision: str | None,
        compute: "torch.dtype",
        device: str,
        remote_code: bool,
    ) -> "PreTrainedModel":
        """Raises SpecError for a layer whose shape cannot be grouped and packed, PluginError without the library."""
        assert isinstance(params, Params)
        hqq = library("hqq.core.quantize", f"hqq{self.bits:.0f}", "hqq")
        config = hqq.BaseQuantizeConfig(nbits=int(self.bits), group_size=params.group_size, axis=1)
        # on the CPU first: the dense model need not fit beside the quantized one on the device
        model = load(folder, dtype=compute, device="cpu", revision=revision, remote_code=remote_code)
        for name, layer in _linears(model):
            self._refuse_what_does_not_pack(name, layer, params.group_size)
            quantized = hqq.HQQLinear(layer, config, compute_dtype=compute, device=device, del_orig=True)
            model.set_submodule(name, quantized)
        model.to(device)  # what is left: a quantized layer is there already
        model.requires_grad_(False)
        model.hqq_quantized = True  # PEFT asks
        return model

    def bits_stored(self, params: Value, compute: Dtype = "bf16") -> float:
        assert isinstance(params, Params)
        codes, word = CODES_PER_WORD[int(self.bits)]
        return word / codes + 2 * WIDTH[compute] / params.group_size

    def _refuse_what_does_not_pack(self, name: str, layer: "torch.nn.Linear", group_size: int) -> None:
        """The library fails on such shapes too, on some with a message about broadcasting."""
        groups, rest = divmod(layer.weight.numel(), group_size)
        shape = f"{name} has {layer.out_features} x {layer.in_features} weights"
        remedy = "set params.group_size to a smaller divisor"
        if rest:
            raise SpecError(f"{shape}, which groups of {group_size} do not divide", remedy)
        together = CODES_PER_WORD[int(self.bits)][0] if self.bits != 3 else 1  # 3-bit codes are padded
        if groups % together:
            raise SpecError(f"{shape}, {groups} groups of {group_size}: {together} are packed together", remedy)


def _linears(model: "PreTrainedModel") -> "list[tuple[str, torch.nn.Linear]]":
    """Every linear layer below the head, by name."""
    from torch import nn

    head = model.get_output_embeddings()
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
