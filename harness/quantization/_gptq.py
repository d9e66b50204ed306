"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): a uniform grid per group, each column's error made good by the next.

The inputs of the layers decide where an error matters, so it looks at texts. By default the model writes them itself
(data-free calibration: LLM-QAT, Liu et al. 2023, arXiv:2305.17888), which needs nothing but the checkpoint and gives
every study of a model the same base; `calibration` names a file instead.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.errors import DataError
from harness.interfaces import About
from harness.quantization._dense import load
from harness.quantization._packages import library
from harness.spec import Dtype, Value

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXTS = 64
"""Texts that it is calibrated on."""
TOKENS = 128
"""Of each text that the model writes."""
SEED = 0
SCALE_BITS = 16
"""Scales are in float16 whatever computes; zero points have as many bits as the codes."""


class Params(Value):
    group_size: int = Field(64, gt=0, multiple_of=8)
    """Neighbours in a row that share a scale and a zero point."""
    calibration: str = ""
    """A text file (a text per line) or JSONL file (its key `text`); empty: texts that the model writes."""


class Gptq:
    """All linear layers but the head at one bit-width, quantized when loaded."""

    params = Params
    needs: Literal["any", "cuda"] = "any"
    packages: tuple[str, ...] = ("gptqmodel", "optimum")
    about = About(grid="uniform", calibrated=True, kernels="gptqmodel's in PyTorch, dequantizing", merges="refuses")

    def __init__(self, bits: Literal[8, 4, 3, 2]) -> None:
        self.bits = float(bits)

    def load(
        self,
        folder: str,
        params: Value,
        *,
        revision: str | None,
        compute: "torch.dtype",
        device: str,
        remote_code: bool,
    ) -> "PreTrainedModel":
        """Raises PluginError without the libraries, DataError for calibration texts that cannot be read."""
        assert isinstance(params, Params)
        # its pools ask for two workers and fail on machines of two cores, where it makes one
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
        for module in self.packages:
            library(module, f"gptq{self.bits:.0f}", "gptq")
        from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig

        where: dict[str, Any] = {"revision": revision, "trust_remote_code": remote_code}
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
        if params.calibration:
            texts = read_texts(Path(params.calibration))
        else:
            dense = load(folder, dtype=compute, device=device, revision=revision, remote_code=remote_code)
            texts = written_by(dense, tokenizer)
            del dense
        config = GPTQConfig(
            bits=int(self.bits),
            group_size=params.group_size,
            tokenizer=tokenizer,
            dataset=texts,
            # the others repack their weights at the first evaluation, and stop gradients from there on
            backend="torch",
        )
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=compute, device_map={"": device}, quantization_config=config, use_safetensors=True, **where
        )
        put_in_order(model)
        return model

    def bits_stored(self, params: Value, compute: Dtype = "bf16") -> float:
        assert isinstance(params, Params)
        return self.bits + (SCALE_BITS + self.bits) / params.group_size


def put_in_order(model: "PreTrainedModel") -> None:
    """Put each module's layers in the order of the dense model again.

    optimum leaves them in that of quantizing; adapters are drawn in the order of the layers, so one seed would give
    another adapter than on every other base.
    """
    from accelerate import init_empty_weights

    with init_empty_weights():
        fresh = type(model)(model.config)
    for name, module in fresh.named_modules():
        there = model.get_submodule(name)._modules
        for child in [n for n, _ in module.named_children() if n in there]:
            there[child] = there.pop(child)


def read_texts(path: Path) -> list[str]:
    """The first texts of a file.

    Raises:
        DataError: there are none.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()][:TEXTS]
        texts = [str(json.loads(line)["text"]) for line in lines] if path.suffix == ".jsonl" else lines
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"params.calibration: {path} cannot be read as texts: {error!r}") from error
    if not texts:
        raise DataError(f"params.calibration: {path} holds no text")
    return texts


def written_by(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Texts sampled from the model, each beginning with another word of its vocabulary; always the same ones."""
    import torch

    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in range(len(tokenizer)) if i not in special]
    draw = torch.Generator().manual_seed(SEED)
    first = torch.tensor(ordinary)[torch.randperm(len(ordinary), generator=draw)[:TEXTS]].unsqueeze(1).to(model.device)
    # `generate` draws from the global state, which is given back
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []), torch.inference_mode():
        torch.manual_seed(SEED)
        written = model.eval().generate(
            input_ids=first,
            attention_mask=torch.ones_like(first),
            max_new_tokens=TOKENS - 1,
            min_new_tokens=TOKENS - 1,  # no row ends early
            do_sample=True,
            top_k=0,
            pad_token_id=tokenizer.pad_token_id,
        )
    return [str(text) for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
