"""One training step of LitGPT, counted from the source of its versions 0.4 and 0.5: what it keeps and where it peaks.

Its models differ from transformers' in what autograd keeps: queries, keys and values are views of one fused product,
LoRA's zero padding saves its source, and Fabric casts logits to fp32 and takes the loss over chunks of 128 tokens.
"""

import math

from harness.forecast.setup import Pass, Setup

CHUNK = 128
"""Tokens at a time through the head (`lm_head_chunk_size`)."""
PARALLEL = {"gpt_neox", "falcon", "phi", "gptj"}
"""Model types whose attention and MLP read the same hidden state."""


def step(setup: Setup) -> Pass:
    saved = _saved(setup)
    loss = _loss(setup)
    if setup.profile.stale_inputs and setup.quantized:
        # the last iteration's loss is rebound only after the next forward pass, and with it what bitsandbytes keeps
        shape = setup.architecture
        head = 2 * shape.vocabulary * setup.tokens + 4 * shape.vocabulary * shape.hidden
        forward = max(6 * shape.vocabulary * setup.tokens, head)
        stale = shape.layers * setup.tokens * _quantized_inputs(setup)
        stale += setup.tokens * (2 * shape.hidden + 4 * shape.vocabulary)
        loss = max(loss, round(forward + stale))
    if setup.checkpointing:
        layer = round(setup.tokens * _layer(setup))
        return Pass(saved=saved, loss=loss, layer=layer, end=layer)
    return Pass(saved=saved, loss=loss, layer=0, end=0)


def _saved(setup: Setup) -> int:
    """Kept for backward when it begins, logits not counted."""
    shape, tokens = setup.architecture, setup.tokens
    rms, inputs = shape.norm == "rms", _keeps_inputs(setup)
    if setup.checkpointing:
        return shape.layers * tokens * 2 * shape.hidden
    per_token = shape.layers * _layer(setup) - _first_layer(setup)
    per_token += (4 if rms else 2) * shape.hidden + 2 * shape.hidden * inputs  # the last norm, and the head's input
    return round(tokens * per_token) + _cast_weights(setup)


def _layer(setup: Setup) -> float:
    """Bytes per token that one layer keeps."""
    shape = setup.architecture
    hidden, query, key, inner = _widths(setup)
    rms, parallel = shape.norm == "rms", shape.model_type in PARALLEL
    # fp32 copies, and the normalised ones of a trained weight; LayerNorm keeps its input, shared in a parallel block
    found = (8.0 + 4 * setup.full) * hidden if rms else (2.0 if parallel else 4.0) * hidden
    # queries and keys turned by their positions; a value is a view of the fused product, or expanded to all heads
    found += 4 * query + (2 * (query + 2 * key) if shape.kv_heads == shape.heads else 2 * query)
    found += 2 * query + 4 * shape.heads  # attention's output, and the log of its sums in fp32
    found += (6 if shape.gated else 2) * inner
    return found + _adapters(setup) + _kept_inputs(setup)


def _adapters(setup: Setup) -> float:
    """Dropout's mask and its output per adapted input, the low-rank products, and the source of the zero padding."""
    if setup.adapter is None:
        return 0.0
    hidden, query, key, inner = _widths(setup)
    width, names, rank = 3, {one.name for one in setup.targets}, setup.adapter.rank
    found = 0.0
    fused = names & {"q_proj", "k_proj", "v_proj"}
    if fused:
        found += width * hidden + 2 * rank * len(fused)
        if len(fused) < 3:
            found += 2 * sum(query if name == "q_proj" else key for name in fused)
    if "o_proj" in names:
        found += width * query + 2 * rank
    if "down_proj" in names:
        into = 2 if setup.architecture.gated else 1
        found += into * (width * hidden + 2 * rank) + width * inner + 2 * rank
    return found


def _keeps_inputs(setup: Setup) -> bool:
    """Whether linear layers keep their inputs: to train their weights, or as old bitsandbytes did."""
    return setup.full or (setup.quantized and setup.profile.keeps_quantized_input)


def _kept_inputs(setup: Setup) -> float:
    return _quantized_inputs(setup) if _keeps_inputs(setup) else 0.0


def _quantized_inputs(setup: Setup) -> float:
    """Inputs of a layer's linear layers, two bytes a value; one norm feeds both halves where there is only one."""
    hidden, query, _, inner = _widths(setup)
    return 2.0 * (hidden * min(2, setup.architecture.norms) + query + inner)


def _first_layer(setup: Setup) -> float:
    """What the first layer does not keep: no gradient flows into its input."""
    if setup.full:
        return 0.0
    shape, inputs = setup.architecture, _keeps_inputs(setup)
    hidden, _, _, inner = _widths(setup)
    found = (4 if shape.norm == "rms" else 2) * hidden + 2 * hidden * inputs
    adapted_mlp = any(one.name == "down_proj" for one in setup.targets)
    if shape.model_type in PARALLEL and not adapted_mlp:
        found += (6 if shape.gated else 2) * inner
        found += inputs * (2 * inner + (2 * hidden if shape.norms > 1 else 0))
    return found


def _cast_weights(setup: Setup) -> int:
    """16-bit copies under autocast: of every frozen weight, and of the head once per chunk of tokens."""
    if setup.weight_bits < 32 or setup.compute == "fp32":
        return 0
    shape = setup.architecture
    heads = math.ceil(setup.length / CHUNK)
    return 2 * shape.linear_parameters + heads * 2 * shape.vocabulary * shape.hidden


def _loss(setup: Setup) -> int:
    """fp32 logits and their log-softmax, and two gradients of one chunk; all chunks at once for full fine-tuning."""
    shape, tokens = setup.architecture, setup.tokens
    vocabulary = shape.vocabulary
    if setup.full:
        return 12 * vocabulary * tokens
    found = 8 * vocabulary * (tokens + min(CHUNK, setup.length) * setup.micro_batch)
    if setup.quantized:  # the quantized head is rebuilt in fp16 and again in the compute dtype
        found = max(found, 6 * vocabulary * tokens + 4 * vocabulary * shape.hidden)
    return found


def _widths(setup: Setup) -> tuple[int, int, int, int]:
    shape = setup.architecture
    return shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.intermediate
