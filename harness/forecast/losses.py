"""Peak bytes between the last hidden state and its gradient: logits, their copies, and the loss."""

from harness.forecast.setup import Loss

CHUNKED_IN = 8
"""Chunks of torchtune's chunked loss."""


def loss_bytes(
    loss: Loss,
    tokens: int,
    hidden: int,
    vocabulary: int,
    *,
    width: int = 2,
    head_trained: bool = False,
    logit_bytes: float | None = None,
    state_bytes: int | None = None,
) -> int:
    """Peak bytes of logits and loss for `tokens` positions, `width` bytes per value and `state_bytes` per
    value of the last hidden state (None: as counted).

    Counted per logit: the logits themselves, their fp32 copy, its log-softmax and its gradient. Sources: transformers'
    `ForCausalLMLoss`; Liger-Kernel's fused linear cross-entropy (arXiv:2410.10989); Wijmans et al. 2024
    (arXiv:2411.09009) for `cut`. Exact against published rows: see docs/forecast.md.
    """
    logits, states = vocabulary * tokens, hidden * tokens
    if loss == "full":
        per_logit = logit_bytes if logit_bytes is not None else width + 12.0
        # the hidden state, its normalised copy and its gradient
        return round(per_logit * logits + (3 * width if state_bytes is None else state_bytes) * states)
    if loss == "triton":
        per_logit = logit_bytes if logit_bytes is not None else 4.0 * width
        return round(per_logit * logits + (2 * width if state_bytes is None else state_bytes) * states)
    if loss == "liger":
        chunks = power_of_two(-(-vocabulary // hidden))
        head = 2 * width * vocabulary * hidden if head_trained else 0
        return round(states * 4 * width + 6 * logits / chunks + head)
    if loss == "chunked":
        return round((width + 12) * logits / CHUNKED_IN + 3 * width * states)
    return 2 * width * states


def power_of_two(least: int) -> int:
    """The smallest power of two that is not below `least`."""
    return 1 << max(0, least - 1).bit_length()
