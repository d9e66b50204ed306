"""Configs in, shapes out: what transformers would build, counts as published, and refusals."""

import csv
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import tiny
from harness.errors import SpecError
from harness.forecast.catalogue import catalogue, find, names
from harness.forecast.configs import from_config

PUBLISHED = Path(__file__).parent.parent.parent / "shared" / "data" / "published_measurements.csv"

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 160,
}  # fmt: skip
GPT: dict[str, Any] = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 32, "vocab_size": 160}
NEOX = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
FALCON = {key: value for key, value in NEOX.items() if key != "intermediate_size"}
OPT = FALCON | {"ffn_dim": 96, "max_position_embeddings": 32, "word_embed_proj_dim": 64}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama with biases": LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 8},
    "granite": LLAMA,
    "mistral": LLAMA,
    "mixtral": LLAMA | {"num_local_experts": 4},
    "qwen2": LLAMA,
    "qwen2_moe": LLAMA | {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
    "qwen3": LLAMA,
    "qwen3_moe": LLAMA | {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16},
    "gemma": LLAMA,
    "gemma2": LLAMA,
    "gemma3_text": LLAMA,
    "phi": LLAMA,
    "phi3": LLAMA | {"pad_token_id": 0},
    "falcon": FALCON,
    "falcon of 40B": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon without its own ways": FALCON | {"multi_query": False, "parallel_attn": False, "bias": True},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 160},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "bloom": {"hidden_size": 64, "n_head": 4, "n_layer": 2, "vocab_size": 160},
    "gpt_neox": NEOX,
    "opt": OPT,
    "glm": LLAMA | {"pad_token_id": 0},
    "glm4": LLAMA | {"pad_token_id": 0},
    "olmo2": LLAMA,
    "olmo3": LLAMA,
    "gpt_oss": LLAMA | {"num_local_experts": 4},
    "hunyuan_v1_dense": LLAMA | {"head_dim": 16},
    "cohere": LLAMA,
    "cohere with norms on queries": LLAMA | {"use_qk_norm": True},
    "stablelm": LLAMA,
    "stablelm of 12B": LLAMA | {"qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True},
    "starcoder2": LLAMA,
    "seed_oss": LLAMA,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_the_parameters_and_linear_layers_that_transformers_builds(name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    config = FAMILIES[name] | {"model_type": name.split()[0]}
    with torch.device("meta"):
        settings = {key: value for key, value in config.items() if key != "model_type"}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **settings))
    model.tie_weights()
    built = []
    for path, module in model.named_modules():
        if ".0." in path and isinstance(module, torch.nn.Linear | Conv1D):
            outputs, inputs = module.weight.shape if isinstance(module, torch.nn.Linear) else module.weight.shape[::-1]
            built.append((path.rpartition(".")[2], inputs, outputs, module.bias is not None))
    found = from_config(config, name)
    assert found.parameters == sum(one.numel() for one in model.parameters())
    # experts and their router are no modules but stacked parameters
    shapes = [(one.name, one.inputs, one.outputs, one.bias) for one in found.linears]
    assert set(built) <= set(shapes) if found.experts > 1 else sorted(built) == sorted(shapes)


@pytest.mark.parametrize("identity", names())
def test_a_catalogued_config_has_the_published_number_of_parameters(identity: str) -> None:
    entry = catalogue()[identity]
    found = find(identity)
    assert found.name == identity
    tolerance = 0.005 if entry.get("about") else 0
    assert found.parameters == pytest.approx(entry["parameters"], rel=tolerance, abs=0)


def published() -> list[tuple[str, float, str]]:
    """Models of the published measurements with their parameters in billions and sequence length."""
    if not PUBLISHED.exists():
        return []
    with PUBLISHED.open(newline="", encoding="utf-8") as lines:
        rows = [(row["model"], row["params_b"], row["seq_len"]) for row in csv.DictReader(lines)]
    return sorted({(model, float(count), length) for model, count, length in rows if count})


def test_models_of_the_published_measurements_are_known_with_their_parameters() -> None:
    rows = published()
    if not rows:
        pytest.skip("needs the published measurements")
    unknown = set()
    for model, billions, length in rows:
        try:
            found = find(model)
        except SpecError:
            unknown.add(model.split()[0])
            continue
        if model.startswith("MPT-"):  # its table of positions is as long as each run's sequences
            found = found.model_copy(update={"positions": int(length)})
        if model == "falcon-7b":  # of LitGPT, which gives it a head of its own
            found = found.model_copy(update={"tied": False})
        assert found.parameters == pytest.approx(billions * 1e9, rel=0.005), model
    assert unknown == {"Gemma-4-31B", "bert-large-uncased", "bigscience/T0_3B"}


def test_the_embedded_model_has_the_parameters_of_its_file() -> None:
    content = (tiny.MODEL / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    counted = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            rows, *columns = tensor["shape"]
            counted += rows * (columns[0] if columns else 1)
    assert find("tiny").parameters == counted


@pytest.mark.parametrize(
    ("model", "identity"),
    [
        ("Llama-2-7B", "meta-llama/Llama-2-7b-hf"),
        ("llama2-7b", "meta-llama/Llama-2-7b-hf"),
        ("Llama 2 7B", "meta-llama/Llama-2-7b-hf"),
        ("NousResearch/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "meta-llama/Llama-3.1-8B"),
        ("TheBloke/Mistral-7B-v0.1-GPTQ", "mistralai/Mistral-7B-v0.1"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistralai/Mistral-7B-Instruct-v0.2"),
        ("qwen-7b-chat", "Qwen/Qwen-7B"),
        ("qwen-1_8b-chat", "Qwen/Qwen-1_8B"),
        ("qwen1half-7b-chat-awq", "Qwen/Qwen1.5-7B"),
        ("Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B"),
        ("google/gemma-2-2b-it", "google/gemma-2-2b"),
        ("gemma-2b", "google/gemma-2b"),
        ("gpt-oss-20b (MoE)", "openai/gpt-oss-20b"),
        ("MPT-7b", "llm-foundry/mpt-7b"),
        ("mosaicml/mpt-7b", "mosaicml/mpt-7b"),
    ],
)
def test_a_model_is_found_by_the_names_people_use(model: str, identity: str) -> None:
    found = find(model)
    assert found.name == identity
    assert found.doubts == from_config(catalogue()[identity]["config"], identity).doubts


def test_a_strangers_model_of_a_known_name_is_found_with_a_doubt() -> None:
    (doubt,) = find("somebody/llama-7b").doubts
    assert "huggyllama/llama-7b" in doubt


def test_a_number_in_two_parts_is_not_another_number() -> None:
    # llama-33b is the first Llama of 33B
    with pytest.raises(SpecError, match="no config of 'llama-3-3b'"):
        find("llama-3-3b")


def test_an_unknown_model_names_the_nearest_and_how_to_get_its_config() -> None:
    with pytest.raises(SpecError, match=r"Qwen/Qwen2\.5-7B") as error:
        find("Qwen/Qwen2.5-8B")
    assert error.value.remedy == "hf download Qwen/Qwen2.5-8B config.json"


def test_no_two_models_share_a_name() -> None:
    entries = catalogue()
    said = [alias.lower() for entry in entries.values() for alias in entry.get("aliases", ())]
    said += [identity.lower() for identity in entries]
    assert sorted(said) == sorted(set(said))


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        ("llama2-7b", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("qwen-7b", "c_attn c_proj w1 w2 c_proj"),
        ("phi-2", "q_proj k_proj v_proj dense fc1 fc2"),
        ("phi-3-mini", "qkv_proj o_proj gate_up_proj down_proj"),
        ("santacoder", "c_attn c_proj c_fc c_proj"),
        ("falcon-7b", "query_key_value dense dense_h_to_4h dense_4h_to_h"),
        ("chatglm3-6b", "query_key_value dense dense_h_to_4h dense_4h_to_h"),
        ("mixtral-8x7b", "q_proj k_proj v_proj o_proj gate w1 w3 w2"),
    ],
)
def test_linear_layers_have_the_names_that_target_modules_uses(model: str, targets: str) -> None:
    assert " ".join(one.name for one in find(model).linears) == targets


def test_the_first_qwen_says_twice_the_width_of_its_mlp() -> None:
    qwen = find("Qwen/Qwen-7B")
    assert qwen.intermediate == 11008
    assert [one.bias for one in qwen.linears] == [True, False, False, False, False]


def test_santacoder_shares_one_key_and_value_among_its_heads() -> None:
    santacoder = find("santacoder")
    attention = santacoder.linears[0]
    assert (santacoder.kv_heads, attention.inputs, attention.outputs) == (1, 2048, 2048 + 2 * 128)
    assert santacoder.positions == 2048


@pytest.mark.parametrize(
    ("model_type", "tied"), [("llama", False), ("qwen2", False), ("gemma2", True), ("cohere", True)]
)
def test_the_head_is_tied_where_the_family_ties_it_and_the_config_is_silent(model_type: str, tied: bool) -> None:
    assert from_config(LLAMA | {"model_type": model_type}, "m").tied is tied
    assert from_config(LLAMA | {"model_type": model_type, "tie_word_embeddings": not tied}, "m").tied is not tied


def test_a_token_goes_through_two_of_eight_experts() -> None:
    mixtral = find("mistralai/Mixtral-8x7B-v0.1")
    attention, router, expert = 2 * 4096 * (4096 + 1024), 4096 * 8, 3 * 4096 * 14336
    assert mixtral.linear_parameters == 32 * (attention + router + 8 * expert)
    assert mixtral.active_linear_parameters == 32 * (attention + router + 2 * expert)
    assert "experts" in mixtral.doubts[0]


@pytest.mark.parametrize(
    ("keys", "window"),
    [
        ({"model_type": "mistral"}, 4096),  # the default of transformers, and what v0.1 publishes
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": False}, None),
        ({"model_type": "gemma2", "sliding_window": 32}, None),  # on every second layer
        ({"model_type": "phi3", "sliding_window": 32}, 32),
    ],
)
def test_a_window_is_one_where_every_layer_has_it(keys: dict[str, Any], window: int | None) -> None:
    assert from_config(LLAMA | keys, "m").window == window


def test_of_a_multimodal_model_the_text_decoder_is_taken_with_a_doubt() -> None:
    # google/gemma-3-4b-it leaves heads, head_dim and vocabulary to the defaults of transformers
    text = {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "sliding_window": 1024,
    }  # fmt: skip
    found = from_config({"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}}, "m")
    assert found.parameters == find("google/gemma-3-4b-pt").parameters
    assert "only its text decoder" in found.doubts[0]


def test_a_quantized_checkpoint_has_the_shapes_of_what_it_was_made_from() -> None:
    quantized = LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert from_config(quantized, "m") == from_config(LLAMA, "m")


def test_an_unknown_decoder_is_taken_as_a_gated_one_with_a_doubt() -> None:
    found = from_config(LLAMA | {"model_type": "newest"}, "m")
    assert found.parameters == from_config(LLAMA, "m").parameters
    assert found.doubts[0].startswith("model_type 'newest' is not known here")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LLAMA | {"model_type": "bert"}, "'bert' is an encoder"),
        (LLAMA | {"model_type": "newest", "architectures": ["NewestForMaskedLM"]}, "'newest' is an encoder"),
        (LLAMA | {"model_type": "t5"}, "'t5' is an encoder-decoder"),
        (LLAMA | {"model_type": "newest", "is_encoder_decoder": True}, "'newest' is an encoder-decoder"),
        (LLAMA | {"model_type": "mamba"}, "'mamba' is a state-space"),
        (LLAMA | {"model_type": "jamba", "mamba_d_state": 16}, "'jamba' is a state-space"),
        (LLAMA | {"model_type": "newest", "layer_types": ["linear_attention", "full_attention"]}, "state-space"),
        ({"_class_name": "UNet2DConditionModel"}, "a diffusion model"),
        (LLAMA | {"model_type": "deepseek_v3", "kv_lora_rank": 512}, "kv_lora_rank means"),
        (LLAMA | {"model_type": "newest", "num_experts": 8}, "num_experts means"),
        ({"model_type": "llama", "hidden_size": 64}, "'llama'.* has no size num_attention_heads"),
        ({}, "'not given'.* has no size hidden_size"),
    ],
)
def test_what_is_no_plain_decoder_is_refused_with_its_type(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match=reason) as error:
        from_config(config, "m")
    assert error.value.remedy is not None
    assert "decoder-only transformers can be forecast" in error.value.remedy


def test_an_encoder_is_refused_by_its_name_alone() -> None:
    with pytest.raises(SpecError, match="'bert' is an encoder"):
        find("bert-large-uncased")


def test_a_folders_config_comes_before_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "llama2-7b"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="this one has none"):
        find("llama2-7b")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert find("llama2-7b").layers == 2
    (folder / "config.json").write_text("{")
    with pytest.raises(SpecError, match="is not JSON"):
        find("llama2-7b")


def test_a_cached_config_comes_before_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    repository = tmp_path / "hub" / "models--meta-llama--Llama-2-7b-hf"
    for commit, layers in {"aaa": 3, "bbb": 4}.items():
        (repository / "snapshots" / commit).mkdir(parents=True)
        config = LLAMA | {"num_hidden_layers": layers}
        (repository / "snapshots" / commit / "config.json").write_text(json.dumps(config))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("aaa")
    assert find("meta-llama/Llama-2-7b-hf").layers == 3
    assert find("meta-llama/Llama-2-7b-hf", "bbb").layers == 4
    assert find("meta-llama/Llama-2-7b-hf", "ccc").layers == 32  # not cached, so from the catalogue


def test_finding_a_model_imports_neither_torch_nor_huggingface_hub() -> None:
    code = (
        "import sys; from harness.forecast.catalogue import find; find('llama2-7b'); "
        "print([one for one in ('torch', 'transformers', 'huggingface_hub') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
