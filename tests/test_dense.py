"""The dense model behind a quantized one, beyond what the conformance suite asks of every backend."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conftest import a_llama

from harness import accounting, dense, plugins
from harness.errors import PluginError, SpecError
from harness.quantization._gptq import read_texts
from harness.quantization._packages import library
from harness.spec import Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IDS = torch.randint(2, 258, (2, 24), generator=torch.Generator().manual_seed(0))
REST = 20_000
"""Bytes of a file's header and of what a library writes beside its tensors."""


def load(name: str, folder: Path, compute: torch.dtype = torch.float32, **params: Any) -> "PreTrainedModel":
    plugin = plugins.quantization(name)
    own = plugin.params.model_validate(params)
    return plugin.load(str(folder), own, revision=None, compute=compute, device="cpu", remote_code=False)


@torch.inference_mode()
def logits(model: "PreTrainedModel") -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("name", ["fp32", "bf16", "nf4", "fp4", "hqq4", "hqq3"])
def test_a_densified_model_answers_the_very_same(name: str, model_folder: Path) -> None:
    model = load(name, model_folder)
    expected = logits(model)
    found = dense.densify(model)
    assert torch.equal(logits(found), expected)
    assert not any(dense.is_quantized(m) for m in found.modules())


def test_a_densified_model_keeps_its_biases_and_is_saved_as_any_other(
    tokenizer: "PreTrainedTokenizerBase", tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder = a_llama(tmp_path / "biased", tokenizer, attention_bias=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p)
    model.save_pretrained(folder)
    for name in ("hqq4", "nf4"):
        quantized = load(name, folder)
        expected = logits(quantized)
        found = dense.densify(quantized)
        found.save_pretrained(tmp_path / name)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert torch.equal(logits(again), expected)
        assert not hasattr(again.config, "quantization_config")


def test_a_layer_wider_than_is_asked_at_a_time_is_whole(
    tokenizer: "PreTrainedTokenizerBase", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("hqq4", a_llama(tmp_path, tokenizer))
    expected = logits(model)
    monkeypatch.setattr(dense, "ROWS_AT_A_TIME", 24)  # 64 and 128 inputs: with a rest
    assert torch.equal(logits(dense.densify(model)), expected)


@pytest.mark.parametrize("params", [{"dora": True}, {"rslora": True, "rank": 4}, {"targets": "q_proj,v_proj"}])
def test_every_kind_of_adapter_merges_exactly(params: dict[str, Any], model_folder: Path) -> None:
    lora = plugins.method("lora")
    model = lora.prepare(load("hqq3", model_folder), lora.params.model_validate(params), Training())
    base = logits(load("hqq3", model_folder))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    expected = logits(model)
    assert (expected - base).abs().max() > 0.01
    merged = dense.merge(model)
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4)


def test_a_merge_into_16_bits_can_be_asked_for_in_32(model_folder: Path) -> None:
    lora = plugins.method("lora")
    model = lora.prepare(load("hqq4", model_folder, torch.bfloat16), lora.params(), Training())
    merged = dense.merge(model, torch.float32)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert logits(merged).dtype == torch.float32


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8", "nf4"])
def test_the_bytes_on_disk_are_those_of_the_files(name: str, model_folder: Path, tmp_path: Path) -> None:
    model = load(name, model_folder)
    said = dense.disk_bytes(model)
    model.save_pretrained(tmp_path)
    found = sum(f.stat().st_size for f in tmp_path.glob("*.safetensors"))
    assert 0 <= found - said < REST
    assert said <= accounting.stored_bytes(model)


def test_bytes_on_disk_leave_out_what_is_computed_at_loading(model_folder: Path) -> None:
    model = load("fp32", model_folder)
    frequencies = model.model.rotary_emb.inv_freq.numel() * 4
    # llama keeps them twice: as they are used, and as they were before any scaling
    assert accounting.stored_bytes(model) - dense.disk_bytes(model) in {frequencies, 2 * frequencies}


@pytest.mark.parametrize("name", ["bf16", "int8", "torchao8", "nf4", "hqq8", "hqq3"])
def test_packed_weights_are_counted_each(name: str, model_folder: Path) -> None:
    assert dense.parameters(load(name, model_folder)) == dense.parameters(load("fp32", model_folder))


def test_hqq_refuses_shapes_that_it_cannot_pack(tokenizer: "PreTrainedTokenizerBase", tmp_path: Path) -> None:
    folder = a_llama(tmp_path, tokenizer, hidden_size=72, intermediate_size=100)
    with pytest.raises(SpecError, match=r"mlp\.\w+ has 100 x 72 weights, which groups of 64 do not divide"):
        load("hqq8", folder)
    # 72 x 72 weights are 81 groups
    with pytest.raises(SpecError, match="81 groups of 64: 2 are packed together"):
        load("hqq4", folder)


def test_hqq_in_16_bits_stores_scales_and_zero_points_in_16_bits() -> None:
    hqq3 = plugins.quantization("hqq3")
    params = hqq3.params.model_validate({"group_size": 128})
    # ten codes in 32 bits, and two numbers per group
    assert hqq3.bits_stored(params, "bf16") == pytest.approx(3.2 + 2 * 16 / 128)
    assert hqq3.bits_stored(params, "fp32") == pytest.approx(3.2 + 2 * 32 / 128)


def test_gptq_stores_a_scale_and_a_zero_point_of_its_codes_width_per_group() -> None:
    gptq4 = plugins.quantization("gptq4")
    assert gptq4.bits_stored(gptq4.params(), "fp32") == pytest.approx(4 + (16 + 4) / 64)


def test_a_missing_package_is_named_with_what_installs_it() -> None:
    with pytest.raises(PluginError, match="gptq4 needs 'no_such_package'") as caught:
        library("no_such_package", "gptq4", "gptq")
    assert caught.value.remedy == "pip install 'finetune-harness[gptq]'"


def test_calibration_texts_are_read_from_lines_and_from_jsonl(tmp_path: Path) -> None:
    from harness.errors import DataError

    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read_texts(tmp_path / "a.txt") == read_texts(tmp_path / "a.jsonl") == ["one", "two"]
    (tmp_path / "b.jsonl").write_text('{"words": "one"}\n')
    for name in ("b.jsonl", "missing.txt"):
        with pytest.raises(DataError, match=name):
            read_texts(tmp_path / name)
