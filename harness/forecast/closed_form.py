"""One training step by component, from formulas that published runs bear out: transformers' trainer and its kin.

For software whose operations are not gone through one by one, as `step.py` does for this project's own stack.
"""

from harness.forecast.losses import loss_bytes
from harness.forecast.setup import BYTES, Pass, Setup
from harness.spec import Dtype

LAYER_COPIES = 12
"""16-bit copies of a hidden state alive in the backward of one layer: norms (input, fp32 copy, normalised, output),
their gradients, the residual's gradient and the inputs of the linear layers."""
MASK = 1
"""Bytes per element of a dropout mask."""


def step(setup: Setup) -> Pass:
    layer = layer_bytes(setup)
    return Pass(saved=saved_bytes(setup) + mask(setup), loss=logits(setup), layer=layer, end=layer)


def saved_bytes(setup: Setup) -> int:
    """Activations that wait for the backward pass when it begins, logits not counted."""
    shape = setup.architecture
    checkpoint = setup.tokens * shape.hidden * activation_width(setup)
    if setup.checkpointing == "offloaded":
        return 2 * checkpoint
    if setup.checkpointing:
        return shape.layers * checkpoint
    return shape.layers * kept_bytes(setup) + checkpoint


def kept_bytes(setup: Setup) -> int:
    """What one layer keeps for its backward pass where nothing is recomputed."""
    shape, width = setup.architecture, activation_width(setup)
    hidden, attention, keys, mlp = _widths(setup)
    norm = (4 + 2 * width) * hidden if setup.full else 4 * hidden
    projections = 2 * width * (attention + keys)
    inner = (4 if setup.full else 3) * width * mlp if shape.gated else (2 if setup.full else 1) * width * mlp
    per_token = shape.norms * norm + projections + inner + adapter_copies(setup)
    if setup.profile.keeps_quantized_input and setup.quantized:
        per_token += width * (2 * hidden + attention + mlp)
    return round(setup.tokens * per_token) + scores(setup, kept=True)


def layer_bytes(setup: Setup) -> int:
    """What the backward pass of one layer needs at once: its recomputed activations and their gradients."""
    if not setup.checkpointing:
        return round(setup.tokens * 4 * BYTES[setup.compute] * setup.architecture.hidden)
    width = activation_width(setup)
    hidden, attention, keys, mlp = _widths(setup)
    inner = 3 * mlp if setup.architecture.gated else 2 * mlp
    adapters = adapter_copies(setup)
    whole = width * (LAYER_COPIES * hidden + 3 * attention + keys + inner) + adapters
    if setup.full:
        whole += LAYER_COPIES * hidden
    if setup.sharding == "fsdp" and not setup.full:
        whole *= 2  # activations within a layer are fp32 there
    # what the MLP kept is gone when the backward pass comes to the attention of the layer
    of_attention = width * (4 * hidden + 3 * attention) + adapters
    return max(
        round(setup.tokens * whole) + scores(setup, kept=True),
        round(setup.tokens * of_attention) + scores(setup, kept=False),
    )


def residual(setup: Setup) -> Dtype:
    """Dtype of the residual stream.

    torch.autocast computes LayerNorm in fp32, and bitsandbytes' layers answer in the dtype they are given: together
    they make the stream fp32.
    """
    if setup.profile.residual is not None:
        return setup.profile.residual
    answers_in_kind = setup.quantization in {"nf4", "fp4", "int8"}
    if setup.architecture.norm == "layer" and setup.profile.autocast and setup.quantized and answers_in_kind:
        return "fp32"
    return setup.compute


def activation_width(setup: Setup) -> int:
    """Bytes per value of what layers hand to each other."""
    return BYTES[residual(setup)]


def logit_width(setup: Setup) -> int:
    """Bytes per logit as the head gives it."""
    return BYTES[setup.compute] if setup.profile.autocast else activation_width(setup)


def adapter_copies(setup: Setup) -> float:
    """Bytes per token that the adapters of one layer keep of their inputs."""
    if setup.adapter is None:
        return 0.0
    dropped = bool(setup.adapter.dropout)
    width = BYTES[setup.adapter_dtype]
    if setup.profile.autocast or setup.profile.fused_layer or setup.sharding == "fsdp":
        copy = BYTES[setup.compute]
    elif width == activation_width(setup):  # no copy is needed, but dropout makes one
        copy = BYTES[setup.compute] if dropped else 0
    else:
        copy = width
    return (copy + MASK * dropped) * sum(one.inputs for one in setup.targets)


def held_logits(setup: Setup) -> int:
    """The logits themselves, where the training loop holds on to them."""
    return logit_width(setup) * setup.architecture.vocabulary * setup.tokens


def logits(setup: Setup) -> int:
    shape = setup.architecture
    wide = activation_width(setup) == 4
    states = (16 if shape.norm == "layer" else 4) if wide else 6
    return loss_bytes(
        setup.loss,
        setup.tokens,
        shape.hidden,
        shape.vocabulary,
        width=logit_width(setup),
        head_trained=setup.full,
        logit_bytes=setup.profile.logit_bytes,
        state_bytes=states if setup.loss == "full" or wide else None,
    )


def _widths(setup: Setup) -> tuple[int, int, int, int]:
    """Hidden, query, key and MLP widths that one token meets in a layer."""
    shape = setup.architecture
    return (
        shape.hidden,
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
        shape.intermediate * shape.experts_used,
    )


def mask(setup: Setup) -> int:
    """The mask that eager attention adds to its scores; the fused kernels know causality without one."""
    return activation_width(setup) * setup.micro_batch * setup.length**2 if setup.attention == "eager" else 0


def scores(setup: Setup, *, kept: bool) -> int:
    """Attention scores of one layer, which only eager attention writes down.

    Kept for backward: the softmax in fp32 and, in 16 bits, its copy. In backward also their gradients and the scaled
    scores: 7 copies of 16 bits, or 4 of 32 (traced by hand through transformers' `eager_attention_forward`).
    """
    if setup.attention != "eager":
        return 0
    each = setup.micro_batch * setup.architecture.heads * setup.length**2
    if activation_width(setup) == 4:
        return (4 if kept else 16) * each
    return (6 if kept else 14) * each
