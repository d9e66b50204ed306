"""The families of decoders: what the layers of each are, from its config.

Module names, biases, norms and defaults of absent keys are those of the modelling code in transformers, or of the code
that the model was published with (Qwen 1, ChatGLM, InternLM 2, MPT of llm-foundry).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from harness.forecast.architecture import Linear

Config = Mapping[str, Any]
Parts = dict[str, Any]
"""Fields of an Architecture beside those of its Shape, or in place of them."""

STACKED = (
    "a mixture of experts: transformers 5 stores the experts as stacked parameters, which adapters and quantizations "
    "of linear layers may pass over, and how many tokens each expert gets depends on the data"
)


@dataclass(frozen=True)
class Shape:
    """What the keys say that all families have."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Family:
    """How to read the configs of one `model_type`."""

    read: Callable[[Config, Shape], Parts]
    tied: bool = False
    """Whether the head is the embedding table where the config does not say."""
    four_wide: bool = False
    """Whether the MLP is four times as wide as the residual stream where the config does not say."""
    defaults: Config = field(default_factory=dict)
    """What transformers takes for keys that published configs leave out."""


def flag(config: Config, key: str, default: bool) -> bool:
    value = config.get(key)
    return default if value is None else bool(value)


def count(config: Config, key: str, default: int) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else default


def _attention(
    s: Shape, bias: bool = False, out_bias: bool = False, names: str = "q_proj k_proj v_proj o_proj"
) -> tuple[Linear, ...]:
    q, k, v, o = names.split()
    return (
        Linear(name=q, inputs=s.hidden, outputs=s.queries, bias=bias),
        Linear(name=k, inputs=s.hidden, outputs=s.keys, bias=bias),
        Linear(name=v, inputs=s.hidden, outputs=s.keys, bias=bias),
        Linear(name=o, inputs=s.queries, outputs=s.hidden, bias=out_bias),
    )


def _fused_attention(s: Shape, qkv: str, out: str, bias: bool = False, out_bias: bool = False) -> tuple[Linear, ...]:
    return (
        Linear(name=qkv, inputs=s.hidden, outputs=s.queries + 2 * s.keys, bias=bias),
        Linear(name=out, inputs=s.queries, outputs=s.hidden, bias=out_bias),
    )


def _gated(
    hidden: int, width: int, bias: bool = False, copies: int = 1, names: str = "gate_proj up_proj down_proj"
) -> tuple[Linear, ...]:
    gate, up, down = names.split()
    return (
        Linear(name=gate, inputs=hidden, outputs=width, bias=bias, copies=copies),
        Linear(name=up, inputs=hidden, outputs=width, bias=bias, copies=copies),
        Linear(name=down, inputs=width, outputs=hidden, bias=bias, copies=copies),
    )


def _fused_gated(s: Shape, up: str, down: str) -> tuple[Linear, ...]:
    return (
        Linear(name=up, inputs=s.hidden, outputs=2 * s.intermediate),
        Linear(name=down, inputs=s.intermediate, outputs=s.hidden),
    )


def _plain(s: Shape, up: str, down: str, bias: bool) -> tuple[Linear, ...]:
    """An MLP of one projection, an activation, and one back."""
    return (
        Linear(name=up, inputs=s.hidden, outputs=s.intermediate, bias=bias),
        Linear(name=down, inputs=s.intermediate, outputs=s.hidden, bias=bias),
    )


def llama(c: Config, s: Shape) -> Parts:
    bias = flag(c, "attention_bias", False)
    return {"linears": _attention(s, bias, bias) + _gated(s.hidden, s.intermediate, flag(c, "mlp_bias", False))}


def _mistral(c: Config, s: Shape) -> Parts:
    return {"linears": _attention(s) + _gated(s.hidden, s.intermediate), "window": _window(c, 4096)}


def _window(c: Config, default: int | None = None) -> int | None:
    """The window of attention, where every layer has it."""
    types = c.get("layer_types")
    if types and set(types) != {"sliding_attention"}:
        return None
    value = c.get("sliding_window", default)
    return value if isinstance(value, int) and value > 0 else None


def _mixtral(c: Config, s: Shape) -> Parts:
    experts, used = count(c, "num_local_experts", 8), count(c, "num_experts_per_tok", 2)
    router = Linear(name="gate", inputs=s.hidden, outputs=experts)
    mlp = _gated(s.hidden, s.intermediate, copies=experts, names="w1 w3 w2")
    return {
        "linears": (*_attention(s), router, *mlp),
        "experts": experts,
        "experts_used": used,
        "window": _window(c),
        "doubts": (STACKED,),
    }


def _qwen(c: Config, s: Shape) -> Parts:
    """Qwen 1: `intermediate_size` counts both input projections; both its outputs are called `c_proj`."""
    width = s.intermediate // 2
    attention = _fused_attention(s, "c_attn", "c_proj", bias=True, out_bias=not flag(c, "no_bias", True))
    return {
        "intermediate": width,
        "linears": attention + _gated(s.hidden, width, names="w1 w2 c_proj"),
    }


def _qwen2(c: Config, s: Shape) -> Parts:
    window = _window(c) if flag(c, "use_sliding_window", False) and count(c, "max_window_layers", 28) <= 0 else None
    return {"linears": _attention(s, bias=True) + _gated(s.hidden, s.intermediate), "window": window}


def _qwen3(c: Config, s: Shape) -> Parts:
    return llama(c, s) | {"qk_norm": 2 * s.head_dim}


def _sparse(c: Config, s: Shape, attention: tuple[Linear, ...], default: tuple[int, int, int]) -> Parts:
    """The experts of Qwen's mixtures."""
    # transformers 5 writes the former as num_local_experts
    experts = count(c, "num_experts", count(c, "num_local_experts", default[0]))
    used = count(c, "num_experts_per_tok", default[1])
    width = count(c, "moe_intermediate_size", default[2])
    doubts: tuple[str, ...] = (STACKED,)
    if c.get("mlp_only_layers") or count(c, "decoder_sparse_step", 1) != 1:
        doubts += ("some of its layers have no experts; all are counted as if they had",)
    return {
        "intermediate": width,
        "linears": (
            *attention,
            Linear(name="gate", inputs=s.hidden, outputs=experts),
            *_gated(s.hidden, width, copies=experts),
        ),
        "experts": experts,
        "experts_used": used,
        "doubts": doubts,
    }


def _qwen2_moe(c: Config, s: Shape) -> Parts:
    parts = _sparse(c, s, _attention(s, bias=flag(c, "qkv_bias", True)), (60, 4, 1408))
    shared = _gated(s.hidden, count(c, "shared_expert_intermediate_size", 5632))
    return parts | {
        "linears": (*parts["linears"], *shared, Linear(name="shared_expert_gate", inputs=s.hidden, outputs=1))
    }


def _qwen3_moe(c: Config, s: Shape) -> Parts:
    bias = flag(c, "attention_bias", False)
    return _sparse(c, s, _attention(s, bias, bias), (128, 8, 768)) | {"qk_norm": 2 * s.head_dim}


def _gemma2(c: Config, s: Shape) -> Parts:
    return llama(c, s) | {"norms": 4}


def _gemma3(c: Config, s: Shape) -> Parts:
    return llama(c, s) | {"norms": 4, "qk_norm": 2 * s.head_dim}


def _phi(c: Config, s: Shape) -> Parts:
    """Attention and MLP side by side, behind one norm; everything has a bias, the head too."""
    return {
        "linears": _attention(s, True, True, "q_proj k_proj v_proj dense") + _plain(s, "fc1", "fc2", True),
        "gated": False,
        "norm": "layer",
        "norms": 1,
        "norm_bias": True,
        "head_bias": True,
        "qk_norm": 4 * s.head_dim if flag(c, "qk_layernorm", False) else 0,
    }


def _phi3(c: Config, s: Shape) -> Parts:
    return {
        "linears": _fused_attention(s, "qkv_proj", "o_proj") + _fused_gated(s, "gate_up_proj", "down_proj"),
        "window": _window(c),
    }


def _falcon(c: Config, s: Shape) -> Parts:
    new = flag(c, "new_decoder_architecture", False)
    parallel = new or flag(c, "parallel_attn", True)
    in_parallel = count(c, "num_ln_in_parallel_attn", 2 if new else 1)
    bias = flag(c, "bias", False)
    if not new:
        s = replace(s, kv_heads=1 if flag(c, "multi_query", True) else s.heads)
    mlp = _plain(s, "dense_h_to_4h", "dense_4h_to_h", bias)
    return {
        "kv_heads": s.kv_heads,
        "linears": _fused_attention(s, "query_key_value", "dense", bias, bias) + mlp,
        "gated": False,
        "norm": "layer",
        "norms": in_parallel if parallel else 2,
        "norm_bias": True,
    }


def _mpt(c: Config, s: Shape) -> Parts:
    """MPT of llm-foundry, which has a table of positions unless it is told to use ALiBi or rotary ones."""
    attention = c.get("attn_config") or {}
    one = attention.get("attn_type") == "multiquery_attention"
    bias = not flag(c, "no_bias", True)
    table = flag(c, "learned_pos_emb", True) and not attention.get("alibi", True) and not attention.get("rope")
    width = int(c.get("expansion_ratio") or 4) * s.hidden
    s = replace(s, intermediate=width, kv_heads=attention.get("kv_n_heads") or (1 if one else s.heads))
    return {
        "kv_heads": s.kv_heads,
        "intermediate": width,
        "linears": _fused_attention(s, "Wqkv", "out_proj", bias, bias) + _plain(s, "up_proj", "down_proj", bias),
        "gated": False,
        "norm": "layer",
        "norm_bias": bias,
        "positions": count(c, "max_seq_len", 2048) if table else 0,
    }


def _gpt(c: Config, s: Shape) -> Parts:
    """GPT-2 and GPT-BigCode; the latter shares one key and value among all heads."""
    if c.get("model_type") == "gpt_bigcode":
        s = replace(s, kv_heads=1 if flag(c, "multi_query", True) else s.heads)
    return {
        "kv_heads": s.kv_heads,
        "linears": _fused_attention(s, "c_attn", "c_proj", True, True) + _plain(s, "c_fc", "c_proj", True),
        "gated": False,
        "norm": "layer",
        "norm_bias": True,
        "positions": count(c, "n_positions", 1024),
    }


def _bloom(c: Config, s: Shape) -> Parts:
    return _gpt_neox(c, s) | {"outer_norms": 2}


def _gpt_neox(c: Config, s: Shape) -> Parts:
    bias = flag(c, "attention_bias", True)
    mlp = _plain(s, "dense_h_to_4h", "dense_4h_to_h", True)
    return {
        "linears": _fused_attention(s, "query_key_value", "dense", bias, bias) + mlp,
        "gated": False,
        "norm": "layer",
        "norm_bias": True,
    }


def _opt(c: Config, s: Shape) -> Parts:
    bias = flag(c, "enable_bias", True)
    doubts: tuple[str, ...] = ()
    if c.get("word_embed_proj_dim") not in (None, s.hidden) or not flag(c, "do_layer_norm_before", True):
        doubts = ("its embeddings are projected, or its norms stand after the sums: counted as a plain OPT",)
    return {
        "linears": _attention(s, bias, bias, "q_proj k_proj v_proj out_proj") + _plain(s, "fc1", "fc2", bias),
        "gated": False,
        "norm": "layer",
        "norm_bias": True,
        # two rows in front of the first position (OPTLearnedPositionalEmbedding)
        "positions": count(c, "max_position_embeddings", 2048) + 2,
        "doubts": doubts,
    }


def _chatglm(c: Config, s: Shape) -> Parts:
    """ChatGLM 2 and 3, GLM-4: the names are Megatron's, the MLP is gated and fused."""
    if flag(c, "multi_query_attention", False):
        s = replace(s, kv_heads=count(c, "multi_query_group_num", 1))
    s = replace(s, head_dim=count(c, "kv_channels", s.head_dim))
    every = flag(c, "add_bias_linear", False)
    qkv = every or flag(c, "add_qkv_bias", False)
    return {
        "kv_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "linears": _fused_attention(s, "query_key_value", "dense", qkv, every)
        + _fused_gated(s, "dense_h_to_4h", "dense_4h_to_h"),
    }


def _glm(c: Config, s: Shape) -> Parts:
    attention = _attention(s, bias=flag(c, "attention_bias", True))
    return {"linears": attention + _fused_gated(s, "gate_up_proj", "down_proj")}


def _glm4(c: Config, s: Shape) -> Parts:
    return _glm(c, s) | {"norms": 4}


def _olmo2(c: Config, s: Shape) -> Parts:
    """Norms on whole queries and keys, all heads at once."""
    return llama(c, s) | {"qk_norm": s.queries + s.keys}


def _gpt_oss(c: Config, s: Shape) -> Parts:
    experts, used = count(c, "num_local_experts", 128), count(c, "num_experts_per_tok", 4)
    mlp = (
        Linear(name="router", inputs=s.hidden, outputs=experts, bias=True),
        Linear(name="gate_up_proj", inputs=s.hidden, outputs=2 * s.intermediate, bias=True, copies=experts),
        Linear(name="down_proj", inputs=s.intermediate, outputs=s.hidden, bias=True, copies=experts),
    )
    return {
        "linears": _attention(s, True, True) + mlp,
        "experts": experts,
        "experts_used": used,
        "other": s.heads,  # attention sinks
        "doubts": (STACKED, "published in mxfp4, which libraries unpack to bf16 on some GPUs and not on others"),
    }


def _cohere(c: Config, s: Shape) -> Parts:
    """Attention and MLP side by side, behind one layer norm without bias."""
    qk_norm = s.queries + s.keys if flag(c, "use_qk_norm", False) else 0
    return llama(c, s) | {"norm": "layer", "norms": 1, "qk_norm": qk_norm}


def _stablelm(c: Config, s: Shape) -> Parts:
    return {
        "linears": _attention(s, bias=flag(c, "use_qkv_bias", False)) + _gated(s.hidden, s.intermediate),
        "norm": "layer",
        "norms": 1 if flag(c, "use_parallel_residual", False) else 2,
        "norm_bias": True,
        "qk_norm": s.queries + s.keys if flag(c, "qk_layernorm", False) else 0,
    }


def _starcoder2(c: Config, s: Shape) -> Parts:
    bias = flag(c, "use_bias", True)
    return {
        "linears": _attention(s, bias, bias) + _plain(s, "c_fc", "c_proj", bias),
        "gated": False,
        "norm": "layer",
        "norm_bias": True,
        "window": _window(c),
    }


def _seed_oss(c: Config, s: Shape) -> Parts:
    attention = _attention(s, flag(c, "attention_bias", True), flag(c, "attention_out_bias", False))
    return {"linears": attention + _gated(s.hidden, s.intermediate, flag(c, "mlp_bias", False))}


def _internlm2(c: Config, s: Shape) -> Parts:
    bias = flag(c, "bias", False)
    return {
        "linears": _fused_attention(s, "wqkv", "wo", bias, bias) + _gated(s.hidden, s.intermediate, names="w1 w3 w2")
    }


FAMILIES: dict[str, Family] = {
    "llama": Family(llama),
    "granite": Family(llama),
    "gemma": Family(llama, tied=True, defaults={"head_dim": 256}),
    "mistral": Family(_mistral, defaults={"num_key_value_heads": 8}),
    "mixtral": Family(_mixtral, defaults={"num_key_value_heads": 8}),
    "qwen": Family(_qwen),
    "qwen2": Family(_qwen2),
    "qwen2_vl": Family(_qwen2),
    "qwen2_vl_text": Family(_qwen2),
    "qwen2_5_vl": Family(_qwen2),
    "qwen2_5_vl_text": Family(_qwen2),
    "qwen2_moe": Family(_qwen2_moe),
    "qwen3": Family(_qwen3, defaults={"head_dim": 128}),
    "qwen3_vl_text": Family(_qwen3, defaults={"head_dim": 128}),
    "qwen3_moe": Family(_qwen3_moe),
    "gemma2": Family(_gemma2, tied=True, defaults={"head_dim": 256}),
    "gemma3_text": Family(
        _gemma3,
        tied=True,
        # google/gemma-3-4b-it leaves these out
        defaults={"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208},
    ),
    "phi": Family(_phi),
    "phi3": Family(_phi3),
    "falcon": Family(_falcon, tied=True, four_wide=True),
    "RefinedWeb": Family(_falcon, tied=True, four_wide=True),
    "RefinedWebModel": Family(_falcon, tied=True, four_wide=True),
    "mpt": Family(_mpt, tied=True, four_wide=True),
    "gpt2": Family(_gpt, tied=True, four_wide=True),
    "gpt_bigcode": Family(_gpt, tied=True, four_wide=True),
    "bloom": Family(_bloom, tied=True, four_wide=True),
    "gpt_neox": Family(_gpt_neox),
    "opt": Family(_opt, tied=True),
    "chatglm": Family(_chatglm),
    "glm": Family(_glm, defaults={"head_dim": 128}),
    "glm4": Family(_glm4, defaults={"head_dim": 128}),
    "olmo2": Family(_olmo2),
    "olmo3": Family(_olmo2),
    "gpt_oss": Family(_gpt_oss, defaults={"head_dim": 64}),
    "hunyuan_v1_dense": Family(_qwen3),
    "cohere": Family(_cohere, tied=True),
    "cohere2": Family(_cohere, tied=True),
    "stablelm": Family(_stablelm),
    "starcoder2": Family(_starcoder2, tied=True),
    "seed_oss": Family(_seed_oss, defaults={"head_dim": 128}),
    "internlm2": Family(_internlm2),
}
"""By `model_type`."""
