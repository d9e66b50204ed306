"""Loading through bitsandbytes, for int8, nf4 and fp4."""

from typing import TYPE_CHECKING, Any, Literal

from harness.interfaces import About
from harness.spec import Dtype, Value

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BLOCK = 64
"""Weights that share one scale in bitsandbytes' 4-bit formats."""
NESTED_BLOCK = 256
"""Scales that share one scale of their own under double quantization."""


def load(
    folder: str,
    config: dict[str, Any],
    *,
    revision: str | None,
    compute: "torch.dtype",
    device: str,
    remote_code: bool,
) -> "PreTrainedModel":
    """The base with its linear layers quantized by `config`; embeddings, norms and head stay in `compute`."""
    import logging

    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    # one warning per int8 matmul about casting inputs: thousands of equal lines in a run's log
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        revision=revision,
        dtype=compute,
        device_map={"": device},
        quantization_config=BitsAndBytesConfig(**config),
        trust_remote_code=remote_code,
        use_safetensors=True,
    )
    keep_one_kernel(model)
    return model


def keep_one_kernel(model: "PreTrainedModel") -> None:
    """Train and evaluate 4-bit layers through the same kernel on every CPU.

    On CPUs with AVX512-BF16 an evaluation pass repacks the weights for a bfloat16 inference kernel; gradients of later
    steps then stop at the layer without an error, and scores depend on the CPU's model (bitsandbytes 0.50,
    `Linear4bit.forward`).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


class FourBitParams(Value):
    double_quant: bool = True
    """Quantize the scales too (QLoRA section 3): 4.127 instead of 4.5 bits per weight."""


class FourBit:
    """bitsandbytes' 4-bit storage with one of its two code tables."""

    params = FourBitParams
    bits = 4.0
    needs: Literal["any", "cuda"] = "any"
    packages: tuple[str, ...] = ("bitsandbytes",)

    def __init__(self, table: Literal["nf4", "fp4"]) -> None:
        self.table = table
        grid: Literal["normal-float", "float"] = "normal-float" if table == "nf4" else "float"
        self.about = About(grid=grid, kernels="bitsandbytes, dequantizing", merges="requantizes")

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
        assert isinstance(params, FourBitParams)
        config = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.table,
            "bnb_4bit_use_double_quant": params.double_quant,
            "bnb_4bit_compute_dtype": compute,
        }
        return load(folder, config, revision=revision, compute=compute, device=device, remote_code=remote_code)

    def bits_stored(self, params: Value, compute: Dtype = "bf16") -> float:
        assert isinstance(params, FourBitParams)
        if params.double_quant:
            return self.bits + 8 / BLOCK + 32 / (BLOCK * NESTED_BLOCK)
        return self.bits + 32 / BLOCK
