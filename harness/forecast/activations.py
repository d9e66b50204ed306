"""The tensors of one training step of this project's own stack, from configuration alone: counted, not fitted.

Weights, adapters, gradients and optimizer state are sums; activations and the peak are read off a step that `step.py`
goes through operation by operation.
"""

import math

from harness.forecast import optimizers
from harness.forecast.architecture import Linear
from harness.forecast.setup import BYTES, Setup
from harness.forecast.step import BLOCK, NESTED_BLOCK, Device, count_forward, count_step, nested, rest_width
from harness.record import TensorBytes


def weights(setup: Setup) -> int:
    """Bytes of the base as stored: codes, scales and tables, what stays unquantized, and the rotary frequencies."""
    one, rest = setup.architecture, rest_width(setup)
    small = one.small_parameters + one.embedding_parameters
    if not setup.quantized:
        return round((one.linear_parameters + small) * setup.weight_bits / 8) + _rotary(setup)
    codes = one.layers * sum(each.copies * _stored(setup, each) for each in one.linears)
    return codes + small * rest + _rotary(setup)


def adapter(setup: Setup) -> int:
    """Bytes of the adapters."""
    return setup.adapter_parameters * BYTES[setup.adapter_dtype]


def gradients(setup: Setup) -> int:
    """Bytes of the gradients at the end of backward, each in its weight's dtype."""
    return setup.trainable * _trained_width(setup)


def optimizer(setup: Setup) -> int:
    """Bytes of the optimizer's state; torch's AdamW keeps the number of the step for every tensor, too."""
    states = round(setup.trainable * optimizers.kept(setup.optimizer).bytes_kept(_trained_width(setup)))
    return states + (4 * _trained_tensors(setup) if setup.optimizer.startswith("adamw_torch") else 0)


def retained(setup: Setup, device: Device = "cpu") -> dict[str, int]:
    """Bytes kept for backward over all layers when backward begins, by component, without the loss's own."""
    return {name: size for name, size in count_step(setup, device).retained.items() if name != "loss" and size}


def layer_transient(setup: Setup, device: Device = "cpu") -> int:
    """What the backward of the last layer needs above what is kept when it begins: its temporaries, and under
    checkpointing the layer computed again."""
    found = count_step(setup, device)
    return found.peaks["last layer"] - found.began["last layer"]


def layer_peak(setup: Setup, device: Device = "cpu") -> int:
    """Most that is held while the backward pass goes through the last layer, what the others keep included."""
    return count_step(setup, device).peaks["last layer"]


def forward_peak(setup: Setup, device: Device = "cpu") -> int:
    """Peak of the layers' forward pass where nothing is kept for backward: the widest moment of one layer.

    The model's caller holds token ids, labels and mask all the while, and the model the embedded tokens.
    """
    held = setup.tokens * (3 * 8 + setup.architecture.hidden * rest_width(setup))
    return held + count_forward(setup, device)


def logits(setup: Setup, device: Device = "cpu") -> int:
    """What head and loss need above what is kept for the layers, in forward or in backward."""
    found = count_step(setup, device)
    return found.peaks["loss"] - sum(retained(setup, device).values())


def step_peak(setup: Setup, device: Device = "cpu") -> int:
    """Peak of one forward and backward pass above weights and optimizer state."""
    return max(count_step(setup, device).peaks.values())


def tensors(setup: Setup) -> TensorBytes:
    """The accounting that a run on a CPU measures of itself."""
    return TensorBytes(
        weights=weights(setup),
        adapter=adapter(setup),
        gradients=gradients(setup),
        optimizer=optimizer(setup),
        step_peak=step_peak(setup),
    )


def _trained_width(setup: Setup) -> int:
    return rest_width(setup) if setup.full else BYTES[setup.adapter_dtype]


def _rotary(setup: Setup) -> int:
    """`inv_freq` and the copy that dynamic scaling keeps: half a head each, fp32 whatever the model's dtype."""
    return 0 if setup.architecture.positions else 2 * 4 * (setup.architecture.head_dim // 2)


def _stored(setup: Setup, linear: Linear) -> int:
    """Bytes of one quantized layer as its library keeps it."""
    weights = linear.inputs * linear.outputs
    if setup.quantization == "int8":
        return weights + 4 * linear.outputs
    if setup.quantization.startswith("torchao"):
        return weights + (4 + 1) * linear.outputs  # a scale in fp32 and a zero point of a byte
    if setup.quantization in {"nf4", "fp4"}:
        blocks = math.ceil(weights / BLOCK)
        codes = math.ceil(weights / 2) + 16 * 4  # half a byte each, and the table of 16 levels
        if not nested(setup):
            return codes + 4 * blocks
        return codes + blocks + 4 * math.ceil(blocks / NESTED_BLOCK) + 256 * 4 + 4  # its own table, and the mean
    return round(weights * setup.weight_bits / 8)


def _trained_tensors(setup: Setup) -> int:
    one = setup.architecture
    if not setup.full:
        each = 2 + bool(setup.adapter and setup.adapter.dora)
        return one.layers * each * sum(target.copies for target in setup.targets)
    linears = sum(each.copies * (2 if each.bias else 1) for each in one.linears)
    norms = (one.layers * one.norms + 1) * (2 if one.norm_bias else 1)
    tables = (1 if one.tied else 2) + bool(one.positions) + one.head_bias
    return one.layers * (linears + (2 if one.qk_norm else 0)) + norms + tables
