"""The four arms of `llama2-7b-methods` on one GPU, on a base with random weights: time, memory and throughput are real.

    python benchmarks/gpu/methods.py [--shape llama2-7b|small] [--steps 8] [--length 512] [--out FOLDER]

The base is made on the spot from its published shape and goes through the study's own code: loading, quantizing,
training, evaluating, keeping. Scores mean nothing and the records say so. The table is printed last; the store is left
under FOLDER (default: $OUT, else results/gpu-methods). `--shape small` tries the script on a CPU.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness import tiny

SHAPES = {
    "llama2-7b": LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=4096,
    ),
    "small": LlamaConfig(
        vocab_size=32000, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=4096,
    ),
}  # fmt: skip
"""The first is the published config.json of meta-llama/Llama-2-7b-hf."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama2-7b")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="tokens per sequence")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "results/gpu-methods")))
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    options.out.mkdir(parents=True, exist_ok=True)
    scratch = Path(os.environ.get("TMPDIR", "/var/tmp")) / f"harness-{options.shape}"  # noqa: S108 named per shape
    model = random_model(options.shape, scratch / "model", on_gpu)
    data = long_rows(scratch / "rows.jsonl", options.length)
    compute = "bf16" if on_gpu else "fp32"
    overrides = [
        f"name={options.shape}-random", f"controls.model.id={model}", f"controls.data.path={data}",
        "controls.data.validation_rows=16", "controls.data.test_rows=16", "controls.evaluate.tasks=[]",
        "controls.evaluate.retention=[]", "controls.evaluate.batch=4", f"controls.device={'cuda' if on_gpu else 'cpu'}",
        f"controls.train.max_steps={options.steps}", f"controls.train.max_length={options.length}",
        f"controls.train.compute_dtype={compute}", "search.trials=1", "confirm.seeds=[1, 2]",
        "objective.metric=test_loss",
        f"arms.full.quantization={compute}", f"arms.lora.quantization={compute}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "harness.cli", "study", "llama2-7b-methods", *overrides]
    subprocess.run([*command, "--store", str(options.out), "--wandb", "off"], check=True)


def random_model(shape: str, folder: Path, on_gpu: bool) -> Path:
    """A checkpoint of this shape with random weights in bfloat16 shards, marked as such; made once."""
    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if on_gpu else "cpu"):
        model = LlamaForCausalLM(SHAPES[shape])
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size="4GB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny.MODEL / name, folder / name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "harness_random_weights": True}))
    return folder


def long_rows(path: Path, length: int) -> Path:
    """Rows that fill `length` tokens, so that every batch is as long as the longest."""
    rng = random.Random(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for number in range(400):
            digits = " ".join(str(rng.randint(0, 9)) for _ in range(length))
            file.write(json.dumps({"prompt": f"Row {number}:", "completion": digits}) + "\n")
    return path


if __name__ == "__main__":
    main()
