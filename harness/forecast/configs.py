"""From a model's published `config.json` to its shapes; what is no plain decoder is refused or marked as doubtful."""

from collections.abc import Mapping
from typing import Any

from harness.errors import SpecError
from harness.forecast.architecture import Architecture
from harness.forecast.families import FAMILIES, Config, Family, Parts, Shape, flag, llama

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model")
HEADS = ("num_attention_heads", "n_head", "n_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads")
INTERMEDIATE = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim")
VOCABULARY = ("padded_vocab_size", "vocab_size")

FORECAST = "decoder-only transformers can be forecast: Llama, Mistral, Qwen, Gemma, Phi, Falcon, GPT-2 and their kin"

ENCODERS = frozenset({
    "albert", "bert", "camembert", "clip", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "esm", "eurobert",
    "longformer", "modernbert", "mpnet", "nomic_bert", "roberta", "siglip", "vit", "wav2vec2", "xlm-roberta",
})  # fmt: skip
ENCODER_DECODERS = frozenset({
    "bart", "blenderbot", "led", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5", "t5gemma", "umt5", "whisper",
})  # fmt: skip
RECURRENT = ("mamba", "ssm_", "state_size", "rwkv", "linear_conv", "linear_num_", "conv_L_cache", "block_types", "lru_")
"""Parts of keys that name a recurrence in place of attention, in all layers or in some."""
ATTENTION_TYPES = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
STRANGE = ("n_routed_experts", "num_experts", "num_local_experts", "moe_intermediate_size", "kv_lora_rank")
"""Keys of an unknown family whose layers the usual keys do not describe: experts, latent attention."""
OTHER_MEDIA = ("text_config", "vision_config", "audio_config")


def from_config(config: Config, name: str) -> Architecture:
    """The shapes of the decoder that `config` describes; a quantized checkpoint has those of what it was made from.

    Raises:
        SpecError: it is no decoder-only transformer, or lacks a key.
    """
    _refuse(config, name)
    doubts: tuple[str, ...] = ()
    if any(isinstance(config.get(key), Mapping) for key in OTHER_MEDIA):
        doubts = ("a model of text and other media: only its text decoder is forecast",)
        config = _text_part(config)
        _refuse(config, name)
    model_type = str(config.get("model_type") or "not given")
    family = FAMILIES.get(model_type) or Family(_unknown)
    config = {**family.defaults, **config}
    shape = _shape(config, name, family)
    if model_type not in FAMILIES:
        _refuse_strange(config, name)
    known: Parts = {**vars(shape), "name": name, "model_type": model_type}
    known["tied"] = flag(config, "tie_word_embeddings", family.tied)
    parts = family.read(config, shape)
    return Architecture.model_validate({**known, **parts, "doubts": doubts + parts.get("doubts", ())})


def _text_part(config: Config) -> Config:
    """The text decoder's own config; what it leaves out stands outside, if anywhere: the tie in particular."""
    nested = config.get("text_config")
    if not isinstance(nested, Mapping):
        return config
    outer = {
        key: config[key] for key in ("model_type", "tie_word_embeddings", "vocab_size") if config.get(key) is not None
    }
    return {**outer, **nested}


def _refuse(config: Config, name: str) -> None:
    """Raise for what is no decoder-only transformer, as far as its config says so."""
    kind = _other_kind(config, str(config.get("model_type", "")))
    if kind is not None:
        raise SpecError(f"{name}: model_type {config.get('model_type', 'not given')!r} is {kind}", FORECAST)


def _other_kind(config: Config, model_type: str) -> str | None:
    if "_class_name" in config or "_diffusers_version" in config:
        return "a diffusion model"
    if config.get("is_encoder_decoder") or model_type in ENCODER_DECODERS:
        return "an encoder-decoder"
    if model_type in ENCODERS or any(str(one).endswith("MaskedLM") for one in config.get("architectures") or ()):
        return "an encoder"
    types = set(config.get("layer_types") or ())
    if not types <= ATTENTION_TYPES or any(part in key for key in (*config, model_type) for part in RECURRENT):
        return "a state-space or recurrent model, at least in some layers"
    return None


def _refuse_strange(config: Config, name: str) -> None:
    strange = [key for key in STRANGE if config.get(key)]
    if strange:
        raise SpecError(
            f"{name}: model_type {config.get('model_type', 'not given')!r} is not known here, and its {strange[0]} "
            "means that its layers are not those of a plain decoder",
            FORECAST,
        )


def _shape(config: Config, name: str, family: Family) -> Shape:
    hidden, heads = _number(config, name, HIDDEN), _number(config, name, HEADS)
    width = _first(config, INTERMEDIATE) or (4 * hidden if family.four_wide else None)
    return Shape(
        layers=_number(config, name, LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=_first(config, KV_HEADS) or heads,
        head_dim=_first(config, ("head_dim",)) or hidden // heads,
        intermediate=width or _number(config, name, INTERMEDIATE),
        vocabulary=_number(config, name, VOCABULARY),
    )


def _first(config: Config, keys: tuple[str, ...]) -> int | None:
    """The first of these keys whose value is a size."""
    values: list[Any] = [config.get(key) for key in keys]
    return next((value for value in values if type(value) is int and value > 0), None)


def _number(config: Config, name: str, keys: tuple[str, ...]) -> int:
    value = _first(config, keys)
    if value is None:
        model_type = config.get("model_type", "not given")
        raise SpecError(f"{name}: its config (model_type {model_type!r}) has no size {keys[0]}", FORECAST)
    return value


def _unknown(config: Config, shape: Shape) -> Parts:
    """A decoder of a family that is not known here."""
    doubt = (
        f"model_type {config.get('model_type', 'not given')!r} is not known here: taken to be a gated decoder with the "
        "module names of Llama, two norms a layer and no biases"
    )
    return {**llama(config, shape), "doubts": (doubt,)}
