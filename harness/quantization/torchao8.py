"""torchao's int8 weights: a scale per output, and activations left as they are, unlike with `int8`."""

from typing import TYPE_CHECKING, Literal

from harness.interfaces import About, Quantization
from harness.quantization._packages import library
from harness.spec import Dtype, Value

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Params(Value):
    """Nothing to set: a scale for each output."""


class TorchAo8:
    params = Params
    bits = 8.0
    needs: Literal["any", "cuda"] = "any"
    packages: tuple[str, ...] = ("torchao",)
    about = About(grid="uniform", kernels="PyTorch, scaling the product", merges="requantizes")

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
        torchao = library("torchao.quantization", "torchao8", "torchao")
        from transformers import AutoModelForCausalLM, TorchAoConfig

        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            revision=revision,
            dtype=compute,
            device_map={"": device},
            quantization_config=TorchAoConfig(torchao.Int8WeightOnlyConfig()),
            trust_remote_code=remote_code,
            use_safetensors=True,
        )
        return model

    def bits_stored(self, params: Value, compute: Dtype = "bf16") -> float:
        return self.bits


plugin: Quantization = TorchAo8()
