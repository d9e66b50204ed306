"""Answers from a model: the base and a fine-tuned run side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness import plugins, sources
from harness.data import Row, segments, tokenize
from harness.record import Record
from harness.train import DTYPES
from harness.worker import choose_device, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def side_by_side(record: Record, folder: Path, prompt: str, max_new_tokens: int) -> tuple[str, str]:
    """What the base and what the fine-tuned model of a record answer to a prompt, greedily.

    The prompt goes through the same template as the training rows. The base is stored as it was in training.
    """
    controls = record.trial.controls
    found = sources.find_model(controls.model, record.trial.model_digest)
    device = choose_device(controls.device)
    _, params = plugins.split_params(record.trial.method, record.trial.quantization, record.trial.params)
    tokenizer = load_tokenizer(found.location, found.revision, controls.model.trust_remote_code)
    base = plugins.quantization(record.trial.quantization).load(
        found.location,
        params,
        revision=found.revision,
        compute=DTYPES[controls.train.compute_dtype],
        device=str(device),
        remote_code=controls.model.trust_remote_code,
    )
    ids = prompt_ids(prompt, str(record.data.get("format", "text")), tokenizer)
    before = answer(base, tokenizer, ids, max_new_tokens)
    tuned = _tuned(base, folder / (record.adapter_path or ""), device)
    return before, answer(tuned, tokenizer, ids, max_new_tokens)


def prompt_ids(prompt: str, kind: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """A prompt as the training rows of this format begin."""
    rows: dict[str, Row] = {
        "messages": {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}]},
        "alpaca": {"instruction": prompt, "output": ""},
        "prompt-completion": {"prompt": prompt, "completion": ""},
    }
    row = rows.get(kind)
    pieces = segments(row, kind, {k: k for k in row}, tokenizer)[:1] if row else [(prompt, False)]
    return tokenize(pieces, tokenizer, max_length=1 << 20)[0]


@torch.inference_mode()
def answer(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", ids: list[int], max_new_tokens: int) -> str:
    """The greedy continuation of a prompt."""
    model.eval()
    inputs = torch.tensor([ids], device=model.device)
    output = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return str(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))


def _tuned(base: "PreTrainedModel", kept: Path, device: torch.device) -> "PreTrainedModel":
    if (kept / "adapter_config.json").is_file():
        from peft import PeftModel

        tuned: PreTrainedModel = PeftModel.from_pretrained(base, str(kept))
        return tuned
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        str(kept), dtype=base.dtype, device_map={"": str(device)}, use_safetensors=True
    )
    return model
