"""What a training step holds, counted on the installed libraries, beside `harness.forecast.activations`.

    python benchmarks/trace_activations.py [--only nf4] [--tokens 4x40,3x64] [--layers 2,3]

Small random models; every storage that is alive when backward begins is counted once and belongs to the part of the
model that made it. The peak is that of `accounting.step_peak`, with TRL's tile of logits as wide as the vocabulary: its
own width would hide the layers of a small model. Run it when a library has a new version: a ratio away from 1 names the
part whose bytes have changed. The generator's states that checkpointing keeps cannot be seen from here (`-`).
"""

import argparse
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
import trl.trainer.utils
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from trl.trainer.utils import add_fused_lm_head

from harness import accounting, plugins
from harness.forecast import activations, step
from harness.forecast.configs import from_config
from harness.forecast.setup import HARNESS, Setup
from harness.spec import Training
from harness.train import DTYPES

VOCABULARY = 72
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 4, "head_dim": 32},
    "llama-gqa": {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 32},
    "mistral": {"num_key_value_heads": 2, "head_dim": 24, "sliding_window": 24},
}
AMP = {"compute_dtype": "bf16"}
CHECKPOINTED = {"gradient_checkpointing": True}
LORA = {"method": "lora", "params": {"rank": 4}}
DROPPED = {"method": "lora", "params": {"rank": 16, "dropout": 0.1, "targets": "q_proj,v_proj"}}


@dataclass(frozen=True)
class Case:
    """One arm, as far as memory depends on it."""

    method: str = "full"
    quantization: str = "fp32"
    params: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    attention: str = "sdpa"
    padded: bool = True
    autocast: bool = True


CASES = {
    "full": Case(),
    "full, one length": Case(padded=False),
    "full, eager": Case(attention="eager"),
    "full, checkpointed": Case(training=CHECKPOINTED),
    "full, bf16": Case(quantization="bf16", training=AMP),
    "full, bf16 without autocast": Case(quantization="bf16", training=AMP, autocast=False),
    "full, fp32 under autocast": Case(training=AMP),
    "lora": Case(**LORA),
    "lora, rank 16 on q and v, dropout": Case(**DROPPED),
    "lora, checkpointed": Case(**LORA, training=CHECKPOINTED),
    "lora, eager": Case(**LORA, attention="eager"),
    "lora, bf16": Case(**LORA, quantization="bf16", training=AMP),
    "lora, bf16 without autocast": Case(**LORA, quantization="bf16", training=AMP, autocast=False),
    "lora, bf16, checkpointed": Case(**LORA, quantization="bf16", training=AMP | CHECKPOINTED),
    "lora, fp32 under autocast": Case(**LORA, training=AMP),
    "int8": Case(**LORA, quantization="int8"),
    "int8, checkpointed": Case(**LORA, quantization="int8", training=CHECKPOINTED),
    "nf4": Case(**LORA, quantization="nf4"),
    "nf4, bf16": Case(**LORA, quantization="nf4", training=AMP),
    "nf4, checkpointed": Case(**LORA, quantization="nf4", training=CHECKPOINTED),
    "fp4, scales not quantized": Case("lora", "fp4", {"rank": 4, "double_quant": False}),
    "dora": Case("lora", "fp32", {"rank": 4, "dora": True}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="arms and models whose name holds this")
    parser.add_argument("--tokens", default="4x40,3x64", help="sequences x tokens, joined by commas")
    parser.add_argument("--layers", default="2,3", help="depths, joined by commas")
    options = parser.parse_args()
    with one_thread(), narrow_tile():
        trace(options)


def trace(options: argparse.Namespace) -> None:
    sizes = [tuple(int(n) for n in size.split("x")) for size in options.tokens.split(",")]
    depths = [int(n) for n in options.layers.split(",")]
    worst = 0.0
    for kind, (name, case) in itertools.product(MODELS, CASES.items()):
        if options.only not in f"{kind}: {name}":
            continue
        for layers, (batch, length) in itertools.product(depths, sizes):
            with tempfile.TemporaryDirectory() as folder:
                setup, counted, peak = measured(kind, case, layers, batch, length, Path(folder))
            forecast = activations.step_peak(setup)
            worst = max(worst, abs(forecast / peak - 1))
            print(f"{kind}: {name}, {layers} layers, {batch} x {length}: {forecast / peak:.4f} of {peak:,} at the peak")
            expected = activations.retained(setup)
            for part in sorted(expected.keys() | counted.keys()):
                ours, theirs = expected.get(part, 0), counted[part]
                print(f"    {part:12} {ours:>12,} {theirs:>12,}  {f'{ours / theirs:.4f}' if theirs else '-'}")
    print(f"largest error at the peak: {worst:.2%}")


@contextmanager
def one_thread() -> Iterator[None]:
    """As a trial on a CPU has: scratch of the attention kernel is held by every thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def narrow_tile() -> Iterator[None]:
    """TRL's tile of logits as wide as the vocabulary, here and in the forecast."""
    before = trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE, step.HEAD_COLUMNS
    trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = step.HEAD_COLUMNS = VOCABULARY
    step.count_step.cache_clear()
    try:
        yield
    finally:
        trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE, step.HEAD_COLUMNS = before
        step.count_step.cache_clear()


def measured(
    kind: str, case: Case, layers: int, batch: int, length: int, folder: Path
) -> tuple[Setup, Counter[str], int]:
    """What the libraries hold when backward begins, by part, and at the peak of a step."""
    training = Training(batch=batch, **case.training)
    config = a_config(kind, layers)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    quantization, method = plugins.quantization(case.quantization), plugins.method(case.method)
    method_params, quantization_params = plugins.split_params(case.method, case.quantization, case.params)
    setup = Setup(
        architecture=from_config(config.to_dict(), kind),
        full=case.method == "full",
        adapter=method.adapter(method_params),
        weight_bits=quantization.bits_stored(quantization_params),
        quantized=bool(quantization.packages),
        quantization=case.quantization,
        compute=training.compute_dtype,
        micro_batch=batch,
        length=length,
        checkpointing=training.gradient_checkpointing,
        attention=case.attention,
        padded=case.padded,
        loss="chunked",
        profile=HARNESS.model_copy(update={"autocast": case.autocast}),
    )
    model = quantization.load(
        str(folder), quantization_params, revision=None, compute=DTYPES[training.compute_dtype], device="cpu",
        remote_code=False,
    )  # fmt: skip
    model.set_attn_implementation(case.attention)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    model = method.prepare(model, method_params, training).train()
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if case.method != "full":
            model.enable_input_require_grads()
    inputs = a_batch(batch, length, case.padded)

    def loss() -> torch.Tensor:
        dtype = DTYPES[training.compute_dtype]
        with torch.autocast("cpu", dtype, enabled=case.autocast and dtype != torch.float32):
            outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        return -outputs.log_probs.sum()

    loss().backward()  # first touches are not the step's
    model.zero_grad(set_to_none=True)
    counted = held(model, loss)
    return setup, counted, accounting.step_peak(lambda: loss().backward(), torch.device("cpu"))


def a_config(kind: str, layers: int) -> Any:
    return transformers.AutoConfig.for_model(
        kind.split("-")[0], vocab_size=VOCABULARY, hidden_size=96, intermediate_size=256, num_hidden_layers=layers,
        num_attention_heads=4, pad_token_id=0, bos_token_id=None, eos_token_id=1, **MODELS[kind],
    )  # fmt: skip


def a_batch(batch: int, length: int, padded: bool) -> dict[str, torch.Tensor]:
    ids = torch.full((batch, length), 5)
    mask = torch.ones_like(ids)
    if padded:
        mask[1:, -1] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def held(model: torch.nn.Module, loss: Any) -> Counter[str]:
    """Bytes of the storages that outlive the forward pass, by the part of the model that made them."""
    parts: list[str] = ["loss"]
    with _told_apart(model, parts), _Made(parts) as made:
        result = loss()
    found: Counter[str] = Counter()
    for reference, size, part in made.storages.values():
        if not reference.expired() and part != "loss":
            found[part] += size
    del result
    return found


class _Made(TorchDispatchMode):
    """Notes every new storage with the part of the model that is at work."""

    def __init__(self, parts: list[str]) -> None:
        super().__init__()
        self.parts = parts
        self.storages: dict[int, tuple[StorageWeakRef, int, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            t.untyped_storage()._cdata for t in torch.utils._pytree.tree_leaves((args, kwargs)) if torch.is_tensor(t)
        }
        out = func(*args, **(kwargs or {}))
        for one in torch.utils._pytree.tree_leaves(out):
            if torch.is_tensor(one) and one.untyped_storage()._cdata not in given:
                storage = one.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes(), self.parts[-1])
        return out


@contextmanager
def _told_apart(model: torch.nn.Module, parts: list[str]) -> Iterator[None]:
    """Keep `parts[-1]` the part of the model that is at work."""
    hooks = []
    for name, module in model.named_modules():
        part = _part(name, module)
        if part is not None:
            hooks.append(module.register_forward_pre_hook(lambda *_, part=part: parts.append(part)))
            hooks.append(module.register_forward_hook(lambda *_: parts.pop() and None))
    yield
    for hook in hooks:
        hook.remove()


def _part(name: str, module: torch.nn.Module) -> str | None:
    """The component that a module's own operations belong to; None: that of the module around it."""
    last = name.rsplit(".", 1)[-1]
    if last == "base_layer":
        return "attention" if "self_attn" in name else "mlp"
    if hasattr(module, "lora_A"):
        return "adapters"
    if hasattr(module, "self_attn"):
        return "residual"
    if hasattr(module, "layers"):
        return "positions"
    names = {"self_attn": "attention", "mlp": "mlp", "embed_tokens": "embedding", "rotary_emb": "positions"}
    norms = {"input_layernorm", "post_attention_layernorm", "norm"}
    return "norms" if last in norms else names.get(last)


if __name__ == "__main__":
    main()
