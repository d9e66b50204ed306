"""LitGPT's and torchtune's steps: bytes per token by hand, on one small decoder."""

import pytest

from harness.forecast import litgpt, torchtune
from harness.forecast.architecture import Architecture, Linear
from harness.forecast.setup import Profile, Setup
from harness.interfaces import AdapterShape


def shape(**changes: object) -> Architecture:
    """Hidden 10, 5 heads of 2, MLP 20, vocabulary 100, 2 layers."""
    parts = (("q_proj", 10, 10), ("k_proj", 10, 10), ("v_proj", 10, 10), ("o_proj", 10, 10), ("gate_proj", 10, 20),
             ("up_proj", 10, 20), ("down_proj", 20, 10))  # fmt: skip
    known: dict[str, object] = {
        "name": "small", "model_type": "llama", "layers": 2, "hidden": 10, "heads": 5, "kv_heads": 5, "head_dim": 2,
        "intermediate": 20, "vocabulary": 100, "tied": False,
        "linears": tuple(Linear(name=n, inputs=i, outputs=o) for n, i, o in parts),
    }  # fmt: skip
    return Architecture.model_validate({**known, **changes})


def setup(profile: Profile, **changes: object) -> Setup:
    known: dict[str, object] = {
        "architecture": shape(), "full": False, "weight_bits": 16,
        "adapter": AdapterShape(rank=1, targets=frozenset({"q_proj", "v_proj"})), "micro_batch": 1,
        "length": 3, "profile": profile,
    }  # fmt: skip
    return Setup.model_validate({**known, **changes})


LITGPT = Profile(name="litgpt", software="litgpt", keeps_quantized_input=True)
TORCHTUNE = Profile(name="torchtune", software="torchtune")


def test_litgpt_keeps_what_autograd_reads_again() -> None:
    # per token of a layer: two fp32 copies for the norms 80, dropout's mask and output 30, two low-rank products 4, the
    # sources of the zero padding 40, turned queries and keys 40, the fused product that values are a view of 60,
    # attention's output and sums 40, the MLP's gate, activation and up 120; the first norm of the first layer keeps
    # nothing (40), the last norm 40
    layer = 80 + 30 + 4 + 40 + 40 + 60 + 40 + 120
    assert litgpt.step(setup(LITGPT)).saved == 3 * (2 * layer - 40 + 40)


def test_an_old_bitsandbytes_keeps_the_input_of_every_layer() -> None:
    plain = litgpt.step(setup(LITGPT)).saved
    kept = litgpt.step(setup(LITGPT, quantized=True, quantization="nf4", weight_bits=4.5)).saved
    # two norm outputs, attention's output and the MLP's product, 2 bytes each: 100 a token and layer; not the first
    # layer's first (20), but the head's (20)
    assert kept - plain == 3 * (2 * 100 - 20 + 20)


def test_litgpt_holds_fp32_logits_their_logarithms_and_two_gradients_of_a_chunk() -> None:
    assert litgpt.step(setup(LITGPT)).loss == 8 * 100 * (3 + 3)
    assert litgpt.step(setup(LITGPT, length=1000)).loss == 8 * 100 * (1000 + 128)


def test_a_parallel_block_reads_one_hidden_state() -> None:
    one = setup(LITGPT, architecture=shape(model_type="gpt_neox", norm="layer", gated=False))
    two = setup(LITGPT, architecture=shape(model_type="phi3", norm="layer", gated=False))
    assert litgpt.step(one).saved < litgpt.step(two).saved


def test_torchtune_keeps_one_hidden_state_a_layer_under_checkpointing_and_none_when_they_are_offloaded() -> None:
    kept = torchtune.step(setup(TORCHTUNE, checkpointing=True, loss="chunked"))
    assert kept.saved == 2 * 2 * 10 * 3
    assert torchtune.step(setup(TORCHTUNE, checkpointing="offloaded", loss="chunked")).saved == 0
    assert kept.loss == 2 * 100 * 3  # each chunk's gradient takes its logits' place


def test_torchtune_without_chunks_holds_the_logits_six_times() -> None:
    full = setup(TORCHTUNE, full=True, adapter=None, loss="full", checkpointing=True)
    assert torchtune.step(full).loss == 12 * 100 * 3


@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_layer_keeps_less(compiled: bool) -> None:
    profile = TORCHTUNE.model_copy(update={"compiled": compiled})
    saved = torchtune.step(setup(profile, full=True, adapter=None)).saved
    per_layer = 323 if compiled else 2 * 80 + 16 + 80 + 20 + 160
    assert saved == 3 * (2 * per_layer + 80)
