"""One training step of torchtune 0.4 on packed rows, counted from its source: what it keeps and where it peaks."""

from harness.forecast.setup import Pass, Setup

CHUNKS = 8
"""Of `CEWithChunkedOutputLoss`."""
COMPILED = 32.3
"""Bytes per hidden value and token that a compiled layer keeps: read off two runs of one model; by hand 32.0."""


def step(setup: Setup) -> Pass:
    shape, tokens = setup.architecture, setup.tokens
    hidden, vocabulary = shape.hidden, shape.vocabulary
    if setup.checkpointing == "offloaded":
        saved = 0
    elif setup.checkpointing:
        saved = 2 * shape.layers * hidden * tokens
    else:
        saved = round(shape.layers * _layer(setup) * tokens)
    if setup.full or not setup.checkpointing:  # the last norm is never computed again
        saved += (8 if setup.full else 4) * hidden * tokens
    if setup.loss == "chunked":  # 16-bit chunks, each one's gradient in its place
        loss = 2 * vocabulary * tokens
        if setup.full:  # a chunk's gradient of the head, and their sum
            loss += -loss // CHUNKS + 4 * vocabulary * hidden
    else:
        loss = 12 * vocabulary * tokens
    per_layer = shape.linear_parameters // shape.layers
    layer = round(tokens * (_layer(setup) + 6 * shape.intermediate + 4 * hidden))
    end = layer - 2 * per_layer + 2 * hidden * tokens if setup.full and setup.checkpointing else 0
    return Pass(saved=saved, loss=loss, layer=0, end=max(0, end))


def _layer(setup: Setup) -> float:
    """Bytes per token that one layer keeps where every weight is trained."""
    shape = setup.architecture
    if setup.profile.compiled:
        return COMPILED * shape.hidden
    query = shape.heads * shape.head_dim
    norms = 2 * 8 * shape.hidden  # the fp32 copy, the normalised one and the output
    positions = 8 * shape.head_dim  # the fp32 table's rows, gathered for queries and for keys
    return norms + positions + 8 * query + 4 * shape.heads + 8 * shape.intermediate
