"""LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339): 8-bit codes with one scale per output row.

On a CPU training multiplies with dequantized weights and evaluation quantizes the activations too, so its logits differ
a little between the two.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from harness.interfaces import About, Quantization
from harness.quantization._bitsandbytes import load
from harness.spec import Dtype, Value

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Params(Value):
    threshold: float = Field(6.0, ge=0)
    """Activations above this are multiplied in 16 bits; which ones depends on the batch. 0: none."""


class Int8:
    params = Params
    bits = 8.0
    needs: Literal["any", "cuda"] = "any"
    packages: tuple[str, ...] = ("bitsandbytes",)
    about = About(grid="uniform", kernels="bitsandbytes, 8-bit products on CUDA", merges="requantizes")

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
        assert isinstance(params, Params)
        config = {"load_in_8bit": True, "llm_int8_threshold": params.threshold}
        return load(folder, config, revision=revision, compute=compute, device=device, remote_code=remote_code)

    def bits_stored(self, params: Value, compute: Dtype = "bf16") -> float:
        return self.bits


plugin: Quantization = Int8()
