"""Published measurements as setups: what each row says about its run, in the forecast's own terms.

A row that leaves open what bytes depend on (length, batch, method's own tensors) gives a reason instead.
"""

import re
from dataclasses import dataclass
from typing import Any

from harness.errors import HarnessError
from harness.forecast import catalogue, processors
from harness.forecast.architecture import Architecture, Linear
from harness.forecast.losses import loss_bytes
from harness.forecast.setup import Attention, Loss, Profile, Setup, Sharding
from harness.interfaces import AdapterShape
from harness.spec import Dtype

Row = dict[str, Any]
"""One row of the table; empty cells are None."""

NF4, NF4_DOUBLE = 4 + 32 / 64, 4 + 8 / 64 + 32 / (64 * 256)
GPTQ = 4 + (16 + 4) / 128
"""Codes, and a 16-bit scale and a 4-bit zero per group of 128."""
UNGROUPED = ("thebloke/llama-2-70b-gptq", "thebloke/mixtral-8x7b-instruct-v0.1-gptq")
"""GPTQ checkpoints whose published quantization config has `group_size: -1`: one scale per column."""

UPCAST = {"llama", "mistral", "mixtral", "granite", "gemma", "qwen2", "stablelm", "phi3"}
"""Model types whose code in transformers made the logits fp32 by itself; the others left it to autocast until 4.46."""

QUERY = {"q_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv", "attn"}
NAMES = {
    "q": QUERY,
    "k": {"k_proj"} | QUERY - {"q_proj"},
    "v": {"v_proj"} | QUERY - {"q_proj"},
    "o": {"o_proj", "dense", "out_proj", "attn.c_proj", "proj"},
    "gate": {"gate_proj", "gate_up_proj", "w1", "w2"},
    "up": {"up_proj", "gate_up_proj", "w1", "w2"},
    "down": {"down_proj"},
}
"""Short names of published tables, and the modules that they may mean."""


@dataclass(frozen=True)
class LossRow:
    """A measurement of logits and loss alone."""

    bytes: int


def publisher(row: Row) -> str:
    """Who measured: the unit that is weighted equally."""
    source = re.split(r"[ /]", str(row["source"]))[0].lower()
    return "lightning-ai" if source == "lightning" else source


def setup_of(row: Row) -> Setup | LossRow | str:
    """The run of a row, or why it cannot be forecast."""
    if row["method"] == "loss-kernel":
        return _loss_row(row)
    for column in ("micro_batch", "seq_len"):
        if row[column] is None:
            return f"{column} is not stated"
    if str(row["grad_checkpointing"]).startswith("unknown") or row["grad_checkpointing"] is None:
        return "gradient checkpointing is not stated"
    try:
        shape = catalogue.find(str(row["model"]))
    except HarnessError as error:
        return error.message
    if re.search(r"variable.lengths?|cap only", str(row["notes"])):
        return "lengths of the batches are not stated"
    if "train AND eval" in str(row["mem_kind"]):
        return "the peak includes an evaluation by generation that is not described"
    if _is_litgpt(row):
        shape = _in_litgpt(shape)
        if row["method"] == "full" and row["n_gpus"] == 1 and _below_states(row, shape):
            return "measured less than weights, gradients and optimizer state take: not a step of training"
    if shape.model_type == "mpt":  # trained with a table of positions as long as the sequences
        shape = shape.model_copy(update={"positions": int(row["seq_len"])})
    if "device_map" in str(row["sharding"]) or "model-parallel" in str(row["sharding"]):
        return "layers spread over devices (device_map)"
    if row["n_gpus"] and row["n_gpus"] > 1 and str(row["sharding"]).startswith("unstated"):
        return "sharding is not stated"
    method = str(row["method"])
    if method not in {"full", "full(pretrain)", "lora", "qlora", "dora", "lora-rslora", "lora-int8"}:
        return f"method {method}"
    full = method.startswith("full")
    bits, name, quantized = _storage(row)
    return Setup(
        architecture=shape,
        full=full,
        adapter=None if full else _adapter(row, shape),
        weight_bits=bits,
        quantized=quantized,
        quantization=name,
        compute=_compute(row),
        adapter_dtype=_adapter_dtype(row),
        optimizer=_optimizer(row),
        micro_batch=int(row["micro_batch"]),
        accumulation=int(row["grad_accum"] or 1),
        length=int(row["seq_len"]),
        checkpointing=_checkpointing(row),
        attention=_attention(row),
        padded=_varied(row),
        loss=_loss(row),
        devices=int(row["n_gpus"] or 1),
        sharding=_sharding(row),
        offload="offload" in f"{row['sharding']} {row['optimizer']}".lower(),
        profile=profile_of(row, shape),
    )


def profile_of(row: Row, shape: Architecture) -> Profile:
    """The software of a row, from its source's files and framework settings; never from its model."""
    source, notes = str(row["source"]), str(row["notes"] or "")
    qlora = row["base_bits"] is not None and row["base_bits"] < 16
    if "fms-acceleration" in source:
        framework = _framework(row)
        old, newest = "a100_80gb.csv" in source, "granite" in source
        stock = qlora and framework.startswith("baseline") and _sharding(row) == "none"
        # norms that the accelerated preparation does not know by name stay fp32 as well (inferred from the bytes)
        wide = stock or (qlora and shape.norm == "layer")
        if newest or not old or shape.model_type in UPCAST:
            per_logit = {"full": 12.0 if newest else 14.0, "triton": 10.0 if old else 8.0}
        else:
            per_logit = {"full": 16.0, "triton": 12.0} if wide else {"full": 8.0, "triton": 6.0}
        return Profile(
            name=f"fms-{'2024' if old else '2025'}",
            logit_bytes=per_logit.get(_loss(row)),
            residual="fp32" if wide else None,
            autocast="autocast" in str(row["precision"]),
            fused_layer="foak" in framework,
            shards_upcast=not old,
            unsharded_layers=3 if old else 1,
            expandable_segments=False,
        )
    if "fitcheck" in source:
        return Profile(name="fitcheck", residual="fp32" if qlora else None, rest="fp32" if qlora else None,
                       autocast=False, holds_logits=True, expandable_segments=False)  # fmt: skip
    if _is_litgpt(row):
        # its resource tables put the longest sample first; its configurations are measured over whole runs
        tables = "config_hub" not in source
        return Profile(
            name=f"litgpt-{'2023' if tables else '2024'}",
            software="litgpt",
            keeps_quantized_input=True,
            stale_inputs=not tables,
            quantizes_head=qlora,
            peaks_first=tables,
            autocast=False,
            expandable_segments=False,
        )
    if "torchtune" in source:
        flags = "Optimization flags" in source and not notes.startswith(("Baseline", "+packed"))
        return Profile(
            name="torchtune-0.4",
            software="torchtune",
            unsharded_layers=2,  # FSDP2 gathers the next layer's ahead of time
            compiled=flags or "compile" in notes.lower(),
            optimizer_in_backward="optimizer_in_bwd" in str(row["optimizer"]),
            autocast=False,
            expandable_segments="expandable_segments" in notes,
        )
    return Profile(name="published", expandable_segments=False)


def _is_litgpt(row: Row) -> bool:
    return str(row["source"]).startswith("Lightning")


def _in_litgpt(shape: Architecture) -> Architecture:
    """As LitGPT builds it: every model has a head of its own, and its parts have the same names in all of them."""
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, inner = shape.hidden, shape.intermediate
    bias = any(one.bias for one in shape.linears)
    parts = [("q_proj", hidden, query), ("k_proj", hidden, key), ("v_proj", hidden, key), ("o_proj", query, hidden)]
    parts += [("gate_proj", hidden, inner)] * shape.gated
    parts += [("up_proj", hidden, inner), ("down_proj", inner, hidden)]
    linears = tuple(Linear(name=name, inputs=i, outputs=o, bias=bias) for name, i, o in parts)
    return shape.model_copy(update={"tied": False, "linears": linears})


def _below_states(row: Row, shape: Architecture) -> bool:
    """Two bytes each of weight and gradient and four of AdamW's state cannot be had for less."""
    measured = row["peak_mem_gb"]
    return measured is not None and float(measured) * 1e9 < 8 * shape.parameters


def context_of(row: Row) -> int:
    """Bytes of the CUDA context: measured where the row says so, else by the card."""
    measured = re.search(r"cuda_context_mib=([0-9.]+)", str(row["notes"] or ""))
    if measured:
        return round(float(measured[1]) * (1 << 20))
    try:
        return processors.find(str(row["gpu"])).context_bytes
    except (HarnessError, NotImplementedError):
        return 500_000_000


def _varied(row: Row) -> bool:
    """Whether batches have several lengths."""
    fixed = ("y", "n (dummy data, fixed length)", "n (padded to seq_len)", "full sequences")
    return row["packing"] not in fixed and "fitcheck" not in str(row["source"])


def _framework(row: Row) -> str:
    found = re.search(r"framework_config=([^;]*)", str(row["notes"] or ""))
    return found[1] if found else ""


def _storage(row: Row) -> tuple[float, str, bool]:
    """Bits per weight, the quantization's name and whether only linear layers are quantized."""
    bits, notes = row["base_bits"], str(row["notes"] or "").lower()
    if bits is None or bits >= 16:
        return float(bits or 16), {32: "fp32"}.get(int(bits or 16), "bf16"), False
    if bits == 8:
        return (8 + 16 / 128 + 8 / 128 if "gptq" in notes else 8.0), "int8", True
    if "gptq" in notes or "gptq" in str(row["model"]).lower():
        return (4.0 if str(row["model"]).lower() in UNGROUPED else GPTQ), "gptq", True
    double = "double quant" in notes or "nf4-dq" in notes or "torchtune" in str(row["source"])
    return (NF4_DOUBLE if double else NF4), "nf4", True


def _adapter(row: Row, shape: Architecture) -> AdapterShape:
    wanted = str(row["lora_targets"] or "").lower()
    here = {one.name for one in shape.linears}
    words = re.split(r"[\s,+]+", wanted.replace("(llama-factory default)", ""))
    found: set[str] = set()
    for word in words:
        if word == "mlp":
            words_for_mlp = (
                NAMES["gate"]
                | NAMES["up"]
                | NAMES["down"]
                | {"fc1", "fc2", "c_fc", "c_proj", "dense_h_to_4h", "dense_4h_to_h"}
            )
            found |= here & words_for_mlp
        elif word in NAMES:
            found |= here & NAMES[word]
        else:
            found |= here & {word}
    rank = row["lora_rank"]
    dropout = 0.05 if "fms" in str(row["source"]) or "litgpt" in str(row["source"]) else 0.0
    return AdapterShape(
        rank=int(float(rank)) if rank is not None and str(rank).replace(".", "").isdigit() else 8,
        targets=None if not found or wanted.startswith("all") else frozenset(found),
        dropout=dropout,
        dora=row["method"] == "dora",
    )


def _compute(row: Row) -> Dtype:
    precision = str(row["precision"] or "bf16")
    if precision.startswith(("fp16", "amp_fp16")):
        return "fp16"
    return "fp32" if precision.startswith("fp32") and row["base_bits"] == 32 else "bf16"


def _adapter_dtype(row: Row) -> Dtype:
    precision = str(row["precision"] or "")
    if precision in {"bf16-pure", "fp16-pure"} and "fms" not in str(row["source"]):
        return "bf16"
    return "fp32"


def _optimizer(row: Row) -> str:
    name = str(row["optimizer"] or "adamw_torch").lower()
    if _is_litgpt(row) and row["method"] == "qlora":
        return "paged_adamw_32bit"  # LitGPT takes bitsandbytes' where the base is quantized
    if "8bit" in name:
        return "paged_adamw_8bit" if "paged" in name else "adamw_8bit"
    if "torchtune" in str(row["source"]) and name == "adamw":
        return "adamw_torch_fused"  # its recipes ask for it
    if "sgd" in name:
        return "sgd"
    if "fused" in name:
        return "adamw_torch_fused"
    return "adamw_torch"


def _checkpointing(row: Row) -> bool | Any:
    text = str(row["grad_checkpointing"])
    if re.search("activation offload|as LoRA", str(row["notes"])):
        return "offloaded"
    return "offloaded" if "offloaded" in text else text.startswith("y")


def _attention(row: Row) -> Attention:
    text = str(row["attention"] or "sdpa")
    return "eager" if text == "eager" else "flash" if text.startswith("flash") else "sdpa"


def _loss(row: Row) -> Loss:
    name = str(row["loss_kernel"] or "")
    if "chunk" in name:
        return "chunked"
    if "liger-flce" in name or name == "liger":
        return "liger"
    if "CCE" in name or name == "cce" or "CCE" in str(row["notes"] or ""):
        return "cut"
    return "triton" if name in {"triton-ce", "unsloth", "liger-ce"} else "full"


def _sharding(row: Row) -> Sharding:
    text = str(row["sharding"] or "none").lower()
    for word, kind in (("ddp", "ddp"), ("fsdp", "fsdp"), ("zero-3", "zero3"), ("zero-2", "zero2")):
        if word in text:
            return kind  # type: ignore[return-value]  # one of the literals above
    return "none"


def _loss_row(row: Row) -> LossRow | str:
    """Head and loss alone: the head's weight and gradient are counted in these measurements."""
    found = re.search(r"(?:h(\d+),)?V(\d+)", str(row["model"]))
    if not found:
        return "width of the head is not stated"
    hidden, vocabulary = int(found[1] or 0), int(found[2])
    tokens = int(row["seq_len"] or 0) * int(row["micro_batch"] or 1)
    states, logits = hidden * tokens, vocabulary * tokens
    head = 2 * hidden * vocabulary
    path = str(row["loss_kernel"])
    if path == "huggingface-ce":  # fp32 logits, log-softmax and three gradients, one of them the leaf's
        return LossRow(bytes=20 * logits)
    if path == "liger-ce":  # the gradient overwrites the logits
        return LossRow(bytes=4 * logits)
    if path == "huggingface-flce":  # 16-bit logits, log-softmax and gradient; weight, its .grad and a fresh gradient
        return LossRow(bytes=3 * head + 6 * logits + 4 * states)
    if path == "liger-flce":
        fused = loss_bytes("liger", tokens, hidden, vocabulary, head_trained=True)
        return LossRow(bytes=2 * head + fused)
    if path == "eager-bf16":  # as above with a contiguous copy of the logits; the weight's gradient comes later
        return LossRow(bytes=head + 8 * logits + 2 * states)
    return f"what {path} keeps is not published"
