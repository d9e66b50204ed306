"""The dense model that a quantized base, or an adapter beside one, stands for; and what a model takes on disk."""

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from harness import accounting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS_AT_A_TIME = 1024
"""Of the identity matrix that a layer is asked with, so that a wide layer needs no matrix of its own size beside it."""


def densify(model: "PreTrainedModel", dtype: torch.dtype | None = None) -> "PreTrainedModel":
    """The model with every quantized linear layer replaced, in place, by a dense one with the dequantized weights.

    In the dtype that the model computes in these are exactly the weights that its layers multiply with; `dtype` asks
    for another one. Layers that also quantize their inputs (int8) answer a little differently from their weights.
    """
    for name, layer in list(model.named_modules()):
        if is_quantized(layer):
            model.set_submodule(name, _dense(layer, dtype or model.dtype))
    _forget_the_quantization(model)
    if dtype is not None:
        for parameter in model.parameters():  # not `.to(dtype)`, which rounds the rotary frequencies too
            parameter.data = parameter.data.to(dtype)
    return model


def merge(model: "PreTrainedModel", dtype: torch.dtype | None = None) -> "PreTrainedModel":
    """The plain dense model that answers as a base and the adapter beside it do; the model that is passed is used up.

    PEFT's own `merge_and_unload` quantizes the sum again on a quantized base, which at 3 and 2 bits loses most of the
    adapter, and refuses on others. Here the base is dense before the adapter is added to it. A model without an adapter
    is only made dense.
    """
    if not hasattr(model, "peft_config"):
        return densify(model, dtype)
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    adapted = cast(Any, model)
    config = copy.deepcopy(adapted.peft_config[adapted.active_adapter])
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False  # some ways to begin (PiSSA) change the base's weights
    weights = {name: p.detach().clone() for name, p in get_peft_model_state_dict(adapted).items()}
    base = densify(adapted.unload(), dtype)
    again = get_peft_model(base, config)  # adapters in float32, which holds every value of the narrower dtypes
    set_peft_model_state_dict(again, weights)
    return cast("PreTrainedModel", again.merge_and_unload())


def disk_bytes(model: nn.Module) -> int:
    """What the model takes when it is saved as it is stored: codes, scales, what is dense, and an adapter.

    Everything that it holds in memory but the tensors that are computed again at loading. A file's header and names
    come to it.
    """
    temporary = [
        buffer
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if name in module._non_persistent_buffers_set
    ]
    return accounting.stored_bytes(model) - accounting.tensor_bytes(temporary)


def parameters(model: nn.Module) -> int:
    """Weights that the model stands for, however many of them are packed into one number."""
    layers: list[Any] = [m for m in model.modules() if is_quantized(m)]
    packed = {id(p) for layer in layers for p in layer.parameters()}
    inside = sum(m.in_features * m.out_features + (0 if m.bias is None else m.out_features) for m in layers)
    return inside + sum(p.numel() for p in model.parameters() if id(p) not in packed)


def is_quantized(module: nn.Module) -> bool:
    """Whether it is one linear layer whose weights are not stored as the floating-point numbers that they stand for.

    Told by its shape rather than its class: an adapter's wrapper has children, a dense layer a plain float weight.
    """
    if not (hasattr(module, "in_features") and hasattr(module, "out_features")) or list(module.children()):
        return False
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, Tensor) and weight.is_floating_point() and not is_traceable_wrapper_subclass(weight)
    return not plain


@torch.no_grad()
def _dense(layer: Any, dtype: torch.dtype) -> nn.Linear:
    bias = layer.bias if isinstance(getattr(layer, "bias", None), Tensor) else None
    weight = _weight(layer)
    with torch.device(weight.device):
        dense = nn.Linear(layer.in_features, layer.out_features, bias=bias is not None, dtype=dtype)
    dense.weight.copy_(weight)
    if bias is not None:
        dense.bias.copy_(bias)
    return dense.train(layer.training).requires_grad_(False)


def _weight(layer: Any) -> Tensor:
    """The weights that a quantized layer multiplies with, one row per output."""
    if hasattr(getattr(layer, "weight", None), "SCB") or hasattr(getattr(layer, "weight", None), "quant_state"):
        from peft.utils.integrations import dequantize_bnb_weight

        # bitsandbytes' int8 layers quantize what they are asked with, too; their weights have to be read
        return cast(Tensor, dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None)))
    return _as_it_answers(layer)


def _as_it_answers(layer: Any) -> Tensor:
    """W is the transpose of what a linear layer makes of the identity: exactly, since each sum has one term."""
    tensors = [*layer.parameters(), *layer.buffers()]
    device = tensors[0].device
    dtype = getattr(layer, "compute_dtype", None) or next((t.dtype for t in tensors if t.is_floating_point()), None)
    training, bias = layer.training, getattr(layer, "bias", None)
    layer.eval()
    if bias is not None:
        layer.bias = None  # added and taken away again it would round
    try:
        columns = []
        for start in range(0, layer.in_features, ROWS_AT_A_TIME):
            rows = min(ROWS_AT_A_TIME, layer.in_features - start)
            asked = torch.zeros(rows, layer.in_features, device=device, dtype=dtype)
            asked[:, start : start + rows].fill_diagonal_(1)
            columns.append(layer(asked).t())
        return torch.cat(columns, dim=1)
    finally:
        layer.train(training)
        if bias is not None:
            layer.bias = bias


def _forget_the_quantization(model: "PreTrainedModel") -> None:
    """Take away what tells transformers and PEFT that the model is quantized: it would refuse to be saved or moved."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    for name in ("is_loaded_in_8bit", "is_loaded_in_4bit", "hqq_quantized", "is_quantized"):
        vars(model).pop(name, None)
    for module in model.modules():
        config = getattr(module, "config", None)
        vars(config).pop("_is_quantized", None) if config is not None else None
