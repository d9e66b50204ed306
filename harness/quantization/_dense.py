"""Weights in one dtype, as they are loaded."""

from typing import TYPE_CHECKING, Literal

from harness.interfaces import About
from harness.spec import Dtype, Value

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Params(Value):
    """A dense dtype has no parameters of its own."""


class Dense:
    """Every weight in one dtype; `compute` is not used, since a dense layer computes in the dtype of its weights."""

    params = Params
    needs: Literal["any", "cuda"] = "any"
    packages: tuple[str, ...] = ()
    about = About(grid="float", kernels="dense", merges="exact")

    def __init__(self, dtype: str, bits: float) -> None:
        self.dtype = dtype
        self.bits = bits

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
        import torch

        return load(folder, dtype=getattr(torch, self.dtype), device=device, revision=revision, remote_code=remote_code)

    def bits_stored(self, params: Value, compute: Dtype = "bf16") -> float:
        return self.bits


def load(
    folder: str, *, dtype: "torch.dtype", device: str, revision: str | None, remote_code: bool
) -> "PreTrainedModel":
    """The base with all its weights in `dtype`."""
    from transformers import AutoModelForCausalLM

    # the dtype is always named: transformers 5 loads in the checkpoint's own dtype by default
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        revision=revision,
        dtype=dtype,
        device_map={"": device},
        trust_remote_code=remote_code,
        use_safetensors=True,
    )
    return model
