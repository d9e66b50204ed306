"""From a model's published `config.json` to its shapes; what is not a plain decoder is refused or marked as doubtful.

Module names, biases, norms and defaults of absent keys are those of the modelling code in transformers, or of the code
that the model was published with (Qwen 1, ChatGLM, MPT of llm-foundry).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import SpecError
from harness.forecast.architecture import Architecture, Linear

Config = Mapping[str, Any]

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model")
HEADS = ("num_attention_heads", "n_head", "n_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads")
INTERMEDIATE = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim")
VOCABULARY = ("padded_vocab_size", "vocab_size")

FORECAST = "decoder-only transformers can be forecast: Llama, Mistral, Qwen, Gemma, Phi, Falcon, GPT-2 and their kin"

ENCODERS = frozenset(
    "albert bert camembert clip deberta deberta-v2 distilbert electra eurobert ernie esm longformer modernbert mpnet "
    "nomic_bert roberta siglip vit wav2vec2 xlm-roberta".split()
)
ENCODER_DECODERS = frozenset("bart blenderbot led m2m_100 marian mbart mt5 pegasus t5 t5gemma umt5 whisper".split())
RECURRENT = ("mamba", "ssm_", "state_size", "rwkv", "linear_conv", "linear_num_", "conv_L_cache", "block_types", "lru_")
"""Parts of keys that name a recurrence in place of attention, in all layers or in some."""
UNKNOWN_SHAPES = ("n_routed_experts", "num_experts", "num_local_experts", "kv_lora_rank", "moe_intermediate_size")
"""Keys of an unknown family whose layers the usual keys do not describe: experts, latent attention."""

STACKED = (
    "a mixture of experts: transformers 5 stores the experts as stacked parameters, which adapters and quantizations "
    "of linear layers may pass over, and how many tokens each expert gets depends on the data"
)


@dataclass(frozen=True)
class Shape:
    """What the usual keys say."""

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


Parts = dict[str, Any]
"""Fields of an Architecture beside those of its Shape."""
Family = Callable[[Config, Shape], Parts]


def from_config(config: Config, name: str) -> Architecture:
    """The shapes of the decoder that `config` describes; a quantized checkpoint has those of what it was made from.

    Raises:
        SpecError: it is no decoder-only transformer, or lacks a key.
    """
    _refuse(config, name)
    doubts: tuple[str, ...] = ()
    model_type = str(config.get("model_type", ""))
    nested = config.get("text_config")
    if isinstance(nested, Mapping):
        doubts = ("a model of text and other media: only its text decoder is forecast",)
        # what the text part leaves out stands outside, if anywhere: the tie in particular
        outer = {key: config[key] for key in ("tie_word_embeddings", "vocab_size") if config.get(key) is not None}
        inner = str(nested.get("model_type", ""))
        config = {**outer, **nested, "model_type": inner or model_type.removesuffix("_vl")}
        model_type = str(config["model_type"])
        _refuse(config, name)
    family = FAMILIES.get(model_type)
    if family is None:
        parts = _unknown(config, _shape(config, name), name)
    else:
        config = {**CLASS_DEFAULTS.get(model_type, {}), **config}
        parts = family(config, _shape(config, name))
    shape = _shape(config, name)
    known: Parts = {
        "name": name,
        "model_type": model_type,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate": shape.intermediate,
        "vocabulary": shape.vocabulary,
        "tied": _flag(config, "tie_word_embeddings", model_type in TIED),
    }
    return Architecture.model_validate({**known, **parts, "doubts": doubts + parts.get("doubts", ())})


def _refuse(config: Config, name: str) -> None:
    """Raise for what is no decoder-only transformer, as far as its config says so."""
    model_type = str(config.get("model_type", ""))
    kind = None
    if "_class_name" in config or "_diffusers_version" in config:
        kind = "a diffusion model"
    elif config.get("is_encoder_decoder") or model_type in ENCODER_DECODERS:
        kind = "an encoder-decoder"
    elif model_type in ENCODERS:
        kind = "an encoder"
    elif any(part in key for key in (*config, model_type) for part in RECURRENT):
        kind = "a state-space or recurrent model, at least in some layers"
    if kind is not None:
        raise SpecError(f"{name}: model_type {model_type or 'not given'!r} is {kind}", FORECAST)


def _shape(config: Config, name: str) -> Shape:
    hidden = _number(config, name, HIDDEN)
    heads = _number(config, name, HEADS)
    kv_heads = _first(config, KV_HEADS)
    intermediate = _first(config, INTERMEDIATE) or (4 * hidden if config.get("model_type") in FOUR_WIDE else 0)
    return Shape(
        layers=_number(config, name, LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=_first(config, ("head_dim",)) or hidden // heads,
        intermediate=intermediate or _number(config, name, INTERMEDIATE),
        vocabulary=_number(config, name, VOCABULARY),
    )


def _first(config: Config, keys: tuple[str, ...]) -> int | None:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _number(config: Config, name: str, keys: tuple[str, ...]) -> int:
    value = _first(config, keys)
    if value is None or value <= 0:
        raise SpecError(
            f"{name}: its config (model_type {str(config.get('model_type', 'not given'))!r}) has no usable {keys[0]}",
            FORECAST,
        )
    return value


def _flag(config: Config, key: str, default: bool) -> bool:
    value = config.get(key)
    return default if value is None else bool(value)


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


def _llama(c: Config, s: Shape) -> Parts:
    bias = _flag(c, "attention_bias", False)
    return {"linears": _attention(s, bias, bias) + _gated(s.hidden, s.intermediate, _flag(c, "mlp_bias", False))}


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
    experts, used = _count(c, "num_local_experts", 8), _count(c, "num_experts_per_tok", 2)
    router = Linear(name="gate", inputs=s.hidden, outputs=experts)
    mlp = _gated(s.hidden, s.intermediate, copies=experts, names="w1 w3 w2")
    return {
        "linears": (*_attention(s), router, *mlp),
        "experts": experts,
        "experts_used": used,
        "window": _window(c),
        "doubts": (STACKED,),
    }


def _count(c: Config, key: str, default: int) -> int:
    value = c.get(key)
    return value if isinstance(value, int) else default


def _qwen(c: Config, s: Shape) -> Parts:
    """Qwen 1: `intermediate_size` counts both input projections; both its outputs are called `c_proj`."""
    width = s.intermediate // 2
    attention = _fused_attention(s, "c_attn", "c_proj", bias=True, out_bias=not _flag(c, "no_bias", True))
    return {
        "intermediate": width,
        "linears": attention + _gated(s.hidden, width, names="w1 w2 c_proj"),
    }


def _qwen2(c: Config, s: Shape) -> Parts:
    window = _window(c) if _flag(c, "use_sliding_window", False) and _count(c, "max_window_layers", 28) <= 0 else None
    return {"linears": _attention(s, bias=True) + _gated(s.hidden, s.intermediate), "window": window}


def _qwen3(c: Config, s: Shape) -> Parts:
    return _llama(c, s) | {"qk_norm": 2 * s.head_dim}


def _sparse(c: Config, s: Shape, attention: tuple[Linear, ...], default: tuple[int, int]) -> Parts:
    """The experts of Qwen's mixtures."""
    experts, used = _count(c, "num_experts", default[0]), _count(c, "num_experts_per_tok", default[1])
    width = _count(c, "moe_intermediate_size", s.intermediate)
    doubts: tuple[str, ...] = (STACKED,)
    if c.get("mlp_only_layers") or _count(c, "decoder_sparse_step", 1) != 1:
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
    parts = _sparse(c, s, _attention(s, bias=_flag(c, "qkv_bias", True)), (60, 4))
    shared = _gated(s.hidden, _count(c, "shared_expert_intermediate_size", 5632))
    return parts | {
        "linears": (*parts["linears"], *shared, Linear(name="shared_expert_gate", inputs=s.hidden, outputs=1))
    }


def _qwen3_moe(c: Config, s: Shape) -> Parts:
    bias = _flag(c, "attention_bias", False)
    return _sparse(c, s, _attention(s, bias, bias), (128, 8)) | {"qk_norm": 2 * s.head_dim}


def _gemma2(c: Config, s: Shape) -> Parts:
    return _llama(c, s) | {"norms": 4}


def _gemma3(c: Config, s: Shape) -> Parts:
    return _llama(c, s) | {"norms": 4, "qk_norm": 2 * s.head_dim}


def _phi(c: Config, s: Shape) -> Parts:
    """Attention and MLP side by side, behind one norm; everything has a bias, the head too."""
    return {
        "linears": _attention(s, True, True, "q_proj k_proj v_proj dense") + _plain(s, "fc1", "fc2", True),
        "gated": False,
        "norm": "layer",
        "norms": 1,
        "norm_bias": True,
        "head_bias": True,
        "qk_norm": 4 * s.head_dim if _flag(c, "qk_layernorm", False) else 0,
    }


def _phi3(c: Config, s: Shape) -> Parts:
    return {
        "linears": _fused_attention(s, "qkv_proj", "o_proj") + _fused_gated(s, "gate_up_proj", "down_proj"),
        "window": _window(c),
    }


def _falcon(c: Config, s: Shape) -> Parts:
    new = _flag(c, "new_decoder_architecture", False)
    parallel = new or _flag(c, "parallel_attn", True)
    in_parallel = _count(c, "num_ln_in_parallel_attn", 2 if new else 1)
    bias = _flag(c, "bias", False)
    if not new:
        s = _with_kv(s, 1 if _flag(c, "multi_query", True) else s.heads)
    mlp = _plain(s, "dense_h_to_4h", "dense_4h_to_h", bias)
    return {
        "kv_heads": s.kv_heads,
        "linears": _fused_attention(s, "query_key_value", "dense", bias, bias) + mlp,
        "gated": False,
        "norm": "layer",
        "norms": in_parallel if parallel else 2,
        "norm_bias": True,
    }


def _with_kv(s: Shape, kv_heads: int) -> Shape:
    return Shape(s.layers, s.hidden, s.heads, kv_heads, s.head_dim, s.intermediate, s.vocabulary)


def _mpt(c: Config, s: Shape) -> Parts:
    """MPT of llm-foundry, which has a table of positions unless it is told to use ALiBi or rotary ones."""
    attention = c.get("attn_config") or {}
    s = _with_kv(s, attention.get("kv_n_heads") or (1 if attention.get("attn_type") == "multiquery_attention" else s.heads))
    bias = not _flag(c, "no_bias", True)
    table = _flag(c, "learned_pos_emb", True) and not attention.get("alibi", True) and not attention.get("rope")
    width = int(c.get("expansion_ratio") or 4) * s.hidden
    s = Shape(s.layers, s.hidden, s.heads, s.kv_heads, s.head_dim, width, s.vocabulary)
    return {
        "kv_heads": s.kv_heads,
        "intermediate": width,
        "linears": _fused_attention(s, "Wqkv", "out_proj", bias, bias) + _plain(s, "up_proj", "down_proj", bias),
        "gated": False,
        "norm": "layer",
        "norm_bias": bias,
        "positions": _count(c, "max_seq_len", 2048) if table else 0,
    }


def _gpt(c: Config, s: Shape) -> Parts:
    """GPT-2 and GPT-BigCode; the latter shares one key and value among all heads."""
    if c.get("model_type") == "gpt_bigcode":
        s = _with_kv(s, 1 if _flag(c, "multi_query", True) else s.heads)
    return {
        "kv_heads": s.kv_heads,
        "linears": _fused_attention(s, "c_attn", "c_proj", True, True) + _plain(s, "c_fc", "c_proj", True),
        "gated": False,
        "norm": "layer",
        "norm_bias": True,
        "positions": _count(c, "n_positions", 1024),
    }


def _bloom(c: Config, s: Shape) -> Parts:
    return _gpt_neox(c, s) | {"outer_norms": 2}


def _gpt_neox(c: Config, s: Shape) -> Parts:
    bias = _flag(c, "attention_bias", True)
    mlp = _plain(s, "dense_h_to_4h", "dense_4h_to_h", True)
    return {
        "linears": _fused_attention(s, "query_key_value", "dense", bias, bias) + mlp,
        "gated": False,
        "norm": "layer",
        "norm_bias": True,
    }


def _opt(c: Config, s: Shape) -> Parts:
    bias = _flag(c, "enable_bias", True)
    doubts: tuple[str, ...] = ()
    if c.get("word_embed_proj_dim") not in (None, s.hidden) or not _flag(c, "do_layer_norm_before", True):
        doubts = ("its embeddings are projected, or its norms stand after the sums: counted as a plain OPT",)
    return {
        "linears": _attention(s, bias, bias, "q_proj k_proj v_proj out_proj") + _plain(s, "fc1", "fc2", bias),
        "gated": False,
        "norm": "layer",
        "norm_bias": True,
        # two rows in front of the first position (OPTLearnedPositionalEmbedding)
        "positions": _count(c, "max_position_embeddings", 2048) + 2,
        "doubts": doubts,
    }


def _chatglm(c: Config, s: Shape) -> Parts:
    """ChatGLM 2 and 3, GLM-4: the names are Megatron's, the MLP is gated and fused."""
    if _flag(c, "multi_query_attention", False):
        s = _with_kv(s, _count(c, "multi_query_group_num", 1))
    head_dim = _count(c, "kv_channels", s.head_dim)
    s = Shape(s.layers, s.hidden, s.heads, s.kv_heads, head_dim, s.intermediate, s.vocabulary)
    every = _flag(c, "add_bias_linear", False)
    qkv = every or _flag(c, "add_qkv_bias", False)
    return {
        "kv_heads": s.kv_heads,
        "head_dim": head_dim,
        "linears": _fused_attention(s, "query_key_value", "dense", qkv, every)
        + _fused_gated(s, "dense_h_to_4h", "dense_4h_to_h"),
    }


def _glm(c: Config, s: Shape) -> Parts:
    attention = _attention(s, bias=_flag(c, "attention_bias", False))
    return {"linears": attention + _fused_gated(s, "gate_up_proj", "down_proj")}


def _glm4(c: Config, s: Shape) -> Parts:
    return _glm(c, s) | {"norms": 4}


def _olmo2(c: Config, s: Shape) -> Parts:
    """Norms on whole queries and keys, all heads at once."""
    return _llama(c, s) | {"qk_norm": s.queries + s.keys}


def _gpt_oss(c: Config, s: Shape) -> Parts:
    experts, used = _count(c, "num_local_experts", 32), _count(c, "num_experts_per_tok", 4)
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
    qk_norm = s.queries + s.keys if _flag(c, "use_qk_norm", False) else 0
    return _llama(c, s) | {"norm": "layer", "norms": 1, "qk_norm": qk_norm}


def _stablelm(c: Config, s: Shape) -> Parts:
    return {
        "linears": _attention(s, bias=_flag(c, "use_qkv_bias", False)) + _gated(s.hidden, s.intermediate),
        "norm": "layer",
        "norms": 1 if _flag(c, "use_parallel_residual", False) else 2,
        "norm_bias": True,
        "qk_norm": s.queries + s.keys if _flag(c, "qk_layernorm", False) else 0,
    }


def _starcoder2(c: Config, s: Shape) -> Parts:
    bias = _flag(c, "use_bias", True)
    return {
        "linears": _attention(s, bias, bias) + _plain(s, "c_fc", "c_proj", bias),
        "gated": False,
        "norm": "layer",
        "norm_bias": True,
        "window": _window(c),
    }


def _seed_oss(c: Config, s: Shape) -> Parts:
    attention = _attention(s, _flag(c, "attention_bias", True), _flag(c, "attention_out_bias", False))
    return {"linears": attention + _gated(s.hidden, s.intermediate, _flag(c, "mlp_bias", False))}


def _internlm2(c: Config, s: Shape) -> Parts:
    bias = _flag(c, "bias", False)
    return {
        "linears": _fused_attention(s, "wqkv", "wo", bias, bias) + _gated(s.hidden, s.intermediate, names="w1 w3 w2")
    }


def _unknown(c: Config, s: Shape, name: str) -> Parts:
    """A decoder of a family that is not known here, if the usual keys can describe it."""
    strange = [key for key in UNKNOWN_SHAPES if c.get(key)]
    model_type = str(c.get("model_type", "not given"))
    if strange:
        raise SpecError(
            f"{name}: model_type {model_type!r} is not known here, and its {strange[0]} means that its layers are not "
            "those of a plain decoder",
            FORECAST,
        )
    doubt = (
        f"model_type {model_type!r} is not known here: taken to be a gated decoder with the module names of Llama, "
        "two norms a layer and no biases"
    )
    return _llama(c, s) | {"doubts": (doubt,)}


FAMILIES: dict[str, Family] = {
    "llama": _llama,
    "granite": _llama,
    "gemma": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen": _qwen,
    "qwen2": _qwen2,
    "qwen2_vl_text": _qwen2,
    "qwen2_5_vl_text": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_vl_text": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi": _phi,
    "phi3": _phi3,
    "falcon": _falcon,
    "RefinedWeb": _falcon,
    "RefinedWebModel": _falcon,
    "mpt": _mpt,
    "gpt2": _gpt,
    "gpt_bigcode": _gpt,
    "bloom": _bloom,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "chatglm": _chatglm,
    "glm": _glm,
    "glm4": _glm4,
    "olmo2": _olmo2,
    "olmo3": _olmo2,
    "gpt_oss": _gpt_oss,
    "hunyuan_v1_dense": _qwen3,
    "cohere": _cohere,
    "cohere2": _cohere,
    "stablelm": _stablelm,
    "starcoder2": _starcoder2,
    "seed_oss": _seed_oss,
    "internlm2": _internlm2,
}

TIED = frozenset(
    "gemma gemma2 gemma3_text falcon RefinedWeb RefinedWebModel mpt gpt2 gpt_bigcode bloom opt cohere cohere2 "
    "starcoder2".split()
)
"""Families whose head is the embedding table where the config does not say."""

FOUR_WIDE = frozenset("falcon RefinedWeb RefinedWebModel mpt gpt2 gpt_bigcode bloom".split())
"""Families whose MLP is four times as wide as the residual stream where the config does not say."""

CLASS_DEFAULTS: dict[str, Config] = {
    "gemma": {"head_dim": 256},
    "gemma2": {"head_dim": 256},
    # google/gemma-3-4b-it leaves these out
    "gemma3_text": {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208},
    "mistral": {"num_key_value_heads": 8},
    "mixtral": {"num_key_value_heads": 8},
    "qwen3": {"head_dim": 128},
    "gpt_oss": {"head_dim": 64},
    "glm": {"head_dim": 128},
    "glm4": {"head_dim": 128},
    "seed_oss": {"head_dim": 128},
}
"""What transformers takes for keys that published configs leave out."""
