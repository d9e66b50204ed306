"""What each bit-width does to a base: KL and perplexity on rows of tasks, and the bytes that it takes.

    python benchmarks/bits.py [--model FOLDER] [--rows 200] [--device cpu]

Rows are questions with their answers, of the embedded tasks: known ones that the embedded model was pre-trained on
(facts, sorting upwards) and new ones that it is to be trained on (the second largest, sorting downwards), where it is
sure of wrong answers. KL is to the same model in float32, in nats per token over whole rows; perplexity is that of the
answers. `error` is the root mean square of the weights' errors over that of the weights.

Intervals are over rows, 95 %: an order holds when that of the paired difference lies on one side of zero. They say
nothing of other models: each bit-width is one draw of rounding errors.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from harness import accounting, dense, plugins, tiny
from harness.data import IGNORED, segments, tokenize
from harness.intervals import mean_interval

KNOWN, NEW = ("tiny_facts", "tiny_sort_up"), ("tiny_second", "tiny_sort_down")
STORED: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("fp32", {}),
    "bf16": ("bf16", {}),
    "fp16": ("fp16", {}),
    "int8": ("int8", {}),
    "torchao8": ("torchao8", {}),
    "nf4": ("nf4", {}),
    "fp4": ("fp4", {}),
    **{f"hqq{bits} g{size}": (f"hqq{bits}", {"group_size": size}) for bits in (8, 4, 3, 2, 1) for size in (64, 128)},
}
ORDERS = [
    ("nf4", "fp4"),
    *[(f"hqq{a} g{size}", f"hqq{b} g{size}") for a, b in ((8, 4), (4, 3), (3, 2), (2, 1)) for size in (64, 128)],
    *[(f"hqq{bits} g64", f"hqq{bits} g128") for bits in (8, 4, 3, 2, 1)],
    ("hqq8 g64", "int8"),
    ("nf4", "hqq4 g64"),
]
"""The first is expected to be nearer to float32 than the second."""


@dataclass(frozen=True)
class Measured:
    kl: NDArray[np.float64]
    """Nats per token of each row."""
    nll: NDArray[np.float64]
    """Nats per token of each row's answer."""
    known: NDArray[np.bool_]
    """Which rows are of tasks that the model was pre-trained on."""
    error: float
    said: float
    counted: float
    disk_bytes: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(tiny.__file__).parent / "model")
    parser.add_argument("--rows", type=int, default=200, help="of each task")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    rows = list(read_rows(args.model, args.rows))
    known = np.array([task in KNOWN for task, *_ in rows])
    weights: dict[str, torch.Tensor] = {}
    expected: list[torch.Tensor] = []
    measured: dict[str, Measured] = {}
    for name, (quantization, params) in STORED.items():
        plugin = plugins.quantization(quantization)
        own = plugin.params.model_validate(params)
        began = time.perf_counter()
        model = plugin.load(
            str(args.model), own, revision=None, compute=torch.float32, device=args.device, remote_code=False
        )
        seconds = time.perf_counter() - began
        if not measured:  # float32, the first
            weights = {n: m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
            weights.pop("lm_head", None)
        found = [answers(model, ids) for _, ids, _ in rows]
        expected = expected or found
        stored = sum(accounting.stored_bytes(m) for n, m in model.named_modules() if n in weights)
        disk = dense.disk_bytes(model)
        error = relative_error(weights, dense.densify(model))
        measured[name] = Measured(
            kl=np.array([kl(p, q) for p, q in zip(expected, found, strict=True)]),
            nll=np.array([nll(q, labels) for q, (*_, labels) in zip(found, rows, strict=True)]),
            known=known,
            error=error,
            said=plugin.bits_stored(own, "fp32"),
            counted=8 * stored / sum(w.numel() for w in weights.values()),
            disk_bytes=disk,
            seconds=seconds,
        )
    show(measured)


def read_rows(model: Path, of_each: int) -> Iterator[tuple[str, list[int], list[int]]]:
    """Task, token ids and labels of the first rows of each task, rendered as training rows are."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    for task in KNOWN + NEW:
        path = Path(tiny.__file__).parent / "data" / f"{task}.jsonl"
        for line in path.read_text().splitlines()[:of_each]:
            row = json.loads(line)
            said = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
            pieces = segments({"messages": said}, "messages", {"messages": "messages"}, tokenizer)
            ids, labels = tokenize(pieces, tokenizer, max_length=512)[:2]
            yield task, ids, labels


@torch.inference_mode()
def answers(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities at every token but the last."""
    logits = model.eval()(input_ids=torch.tensor([ids], device=model.device)).logits[0, :-1]
    return logits.double().log_softmax(-1).cpu()


def kl(expected: torch.Tensor, found: torch.Tensor) -> float:
    return float((expected.exp() * (expected - found)).sum(-1).mean())


def nll(found: torch.Tensor, labels: list[int]) -> float:
    return float(torch.nn.functional.nll_loss(found, torch.tensor(labels[1:]), ignore_index=IGNORED))


def relative_error(weights: dict[str, torch.Tensor], found: torch.nn.Module) -> float:
    square = sum(float(((found.get_submodule(n).weight - w).float() ** 2).sum()) for n, w in weights.items())
    return math.sqrt(square / sum(float((w**2).sum()) for w in weights.values()))


def show(measured: dict[str, Measured]) -> None:
    print("stored as   bits said  counted  disk KB  load s   error   ppl known     KL known   KL new")
    for name, one in measured.items():
        print(
            f"{name:12}{one.said:9.3f}{one.counted:9.3f}{one.disk_bytes / 1000:9.0f}{one.seconds:8.2f}{one.error:8.4f}"
            f"{math.exp(one.nll[one.known].mean()):12.4f}{one.kl[one.known].mean():13.2e}{one.kl[~one.known].mean():9.2e}"
        )
    print("\nKL of the second minus that of the first, expected above zero")
    for better, worse in ORDERS:
        first, second = measured[better], measured[worse]
        shown = []
        for rows in (first.known, ~first.known):
            interval = mean_interval((second.kl - first.kl)[rows].tolist())
            assert interval is not None
            middle, low, high = interval
            verdict = "holds" if low > 0 else "REVERSED" if high < 0 else "open"
            shown.append(f"{middle:+.2e} ({low:+.2e} .. {high:+.2e}) {verdict:8}")
        weights = "holds" if first.error < second.error else "REVERSED"
        print(f"{better:9} < {worse:9} known {shown[0]}  new {shown[1]}  weights {weights}")


if __name__ == "__main__":
    main()
