"""LoRA (Hu et al. 2021, arXiv:2106.09685): a low-rank update beside each frozen linear layer.

`rslora` scales by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732) and `dora` trains the magnitude apart from
the direction (Liu et al. 2024, arXiv:2402.09353). On a 4-bit base this is QLoRA (Dettmers et al. 2023,
arXiv:2305.14314).
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from harness.interfaces import AdapterShape, Method
from harness.spec import Training, Value

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Params(Value):
    rank: int = Field(8, gt=0)
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str = "all-linear"
    """`all-linear` (every linear layer but the head) or layer names joined by commas, e.g. `q_proj,v_proj`."""
    rslora: bool = False
    dora: bool = False


class Lora:
    params = Params
    trains_quantized_base = True
    trains: Literal["everything", "adapters", "nothing"] = "adapters"

    def adapter(self, params: Value) -> AdapterShape:
        assert isinstance(params, Params)
        targets = None if params.targets == "all-linear" else frozenset(params.targets.split(","))
        return AdapterShape(rank=params.rank, targets=targets, dropout=params.dropout, dora=params.dora)

    def prepare(self, model: "PreTrainedModel", params: Value, training: Training) -> "PreTrainedModel":
        import torch
        from peft import LoraConfig, get_peft_model

        assert isinstance(params, Params)
        config = LoraConfig(
            r=params.rank,
            lora_alpha=params.alpha,
            lora_dropout=params.dropout,
            target_modules=linear_names(model) if params.targets == "all-linear" else params.targets.split(","),
            use_rslora=params.rslora,
            use_dora=params.dora,
            task_type="CAUSAL_LM",
        )
        adapted: PreTrainedModel = get_peft_model(model, config, autocast_adapter_dtype=False)
        # PEFT adds it in the dtype of the base's weights, or in float32 where that is no floating-point dtype
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[training.adapter_dtype]
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        return adapted


def linear_names(model: "PreTrainedModel") -> list[str]:
    """Last names of the linear layers below the head, by their shape rather than their class.

    PEFT's own "all-linear" finds nothing on backends whose layers are not `nn.Linear` (HQQ, GPTQ).
    """
    head = model.get_output_embeddings()
    found = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if hasattr(module, "in_features") and hasattr(module, "out_features") and module is not head
    }
    return sorted(found)


plugin: Method = Lora()
