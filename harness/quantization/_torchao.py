"""Loading through torchao: a scale per output, dense products, activations left as they are."""

from typing import TYPE_CHECKING, Literal

from harness.interfaces import About
from harness.quantization._packages import library
from harness.spec import Dtype, Value

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Params(Value):
    """Nothing to set: a scale for each output."""


class TorchAo:
    """8-bit weights by one of torchao's weight-only configurations; those that quantize activations cut gradients."""

    params = Params
    bits = 8.0
    needs: Literal["any", "cuda"] = "any"
    packages: tuple[str, ...] = ("torchao",)

    def __init__(self, name: str, config: str, grid: Literal["uniform", "float"]) -> None:
        self.name = name
        self.config = config
        self.about = About(grid=grid, kernels="PyTorch, scaling the product", merges="requantizes")

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
        """Raises PluginError without the library."""
        torchao = library("torchao.quantization", self.name, "torchao")
        from transformers import AutoModelForCausalLM, TorchAoConfig

        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            revision=revision,
            dtype=compute,
            device_map={"": device},
            quantization_config=TorchAoConfig(getattr(torchao, self.config)()),
            trust_remote_code=remote_code,
            use_safetensors=True,
        )
        return model

    def bits_stored(self, params: Value, compute: Dtype = "bf16") -> float:
        return self.bits
