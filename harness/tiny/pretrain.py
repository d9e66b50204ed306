"""Make the embedded default again: tokenizer, pretrained model, training rows and test items, from one seed.

    python -m harness.tiny.pretrain [--steps N] [--out FOLDER]

What lies in `model/` and `data/` was made by this script with its defaults; `model/recipe.json` keeps the settings, the
versions and the probes of the run. The base is kept only when the probes say that it knows its facts and can sort
upwards: perplexity alone does not show whether the facts have arrived.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness import __version__, tiny
from harness.tiny import world

SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 1024
LENGTH = 128
FACTS_NEEDED = 0.95
SORTS_NEEDED = 0.90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=32, help="sequences of 128 tokens per step")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=tiny.HERE)
    options = parser.parse_args()

    invented = world.make_world(options.seed)
    write_tasks(invented, options.out / "data", options.seed)
    tokenizer = train_tokenizer(invented, options.seed)
    model, losses, seconds = pretrain(invented, tokenizer, options)
    probes = probe(model, tokenizer, invented)
    print(json.dumps(probes))
    if probes["facts"] < FACTS_NEEDED or probes["sort_up"] < SORTS_NEEDED:
        raise SystemExit(
            f"not kept: the base must reach facts {FACTS_NEEDED} and sort_up {SORTS_NEEDED}; try more --steps"
        )
    folder = options.out / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    recipe = {
        "harness": __version__, "torch": torch.__version__, "seed": options.seed, "steps": options.steps,
        "tokens": options.steps * options.batch * LENGTH, "batch": options.batch, "length": LENGTH,
        "learning_rate": options.learning_rate, "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": round(losses[-1], 4), "seconds": round(seconds, 1), "probes": probes,
    }  # fmt: skip
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


def train_tokenizer(invented: world.World, seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that reads any text, one token per digit, with the marks of the chat template."""
    rng = random.Random(f"tokenizer-{seed}")
    documents = world.corpus(invented, rng)
    texts = [t for _ in range(20_000) for t in _texts(next(documents))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", chat_template=TEMPLATE,
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"], model_max_length=512,
    )  # fmt: skip


def pretrain(
    invented: world.World, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace
) -> tuple[LlamaForCausalLM, list[float], float]:
    """Train from random weights on packed documents; warm-up over 5 % of the steps, then cosine to a tenth."""
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=128, intermediate_size=448, num_hidden_layers=4, num_attention_heads=4,
            max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, options.steps))
    stream = _stream(invented, tokenizer, random.Random(f"corpus-{options.seed}"))
    losses: list[float] = []
    began = time.perf_counter()
    for step in range(options.steps):
        batch = torch.tensor([[next(stream) for _ in range(LENGTH)] for _ in range(options.batch)])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 99:
            print(f"step {step + 1} loss {losses[-1]:.3f} {time.perf_counter() - began:.0f} s", flush=True)
        if step % 500 == 499:
            print(json.dumps(probe(model, tokenizer, invented)), flush=True)
    return model, losses, time.perf_counter() - began


@torch.no_grad()
def probe(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, invented: world.World) -> dict[str, float]:
    """Share of exact greedy answers: known facts and skills, and what fine-tuning is to teach (near zero before)."""
    rng = random.Random("probe")
    facts = []
    for who, values in invented.facts.items():
        attribute = rng.choice(world.ATTRIBUTES)
        facts.append(world.chat(rng.choice(attribute.questions).format(who=who), values[attribute.name]))
    rows = {
        "facts": facts,
        "sort_up": [world.sort_up(world.digit_list(rng)) for _ in range(100)],
        "sort_down": [world.sort_down(world.digit_list(rng)) for _ in range(100)],
        "second": [world.second_largest(world.digit_list(rng)) for _ in range(100)],
    }
    model.eval()
    shares = {name: sum(_answers(model, tokenizer, row) for row in some) / len(some) for name, some in rows.items()}
    model.train()
    return {name: round(share, 3) for name, share in shares.items()}


def write_tasks(invented: world.World, folder: Path, seed: int) -> None:
    """The training rows and the items of the five tasks; no list of a test item is trained on, as JSON lines."""
    rng = random.Random(f"tasks-{seed}")
    taken: set[str] = set()
    test_lists = world.distinct_lists(rng, 400, taken)
    train_lists = world.distinct_lists(rng, 2000, taken)
    up_lists = world.distinct_lists(rng, 200, taken)
    longest_lists = world.distinct_lists(random.Random(f"longest-{seed}"), 300, taken, shortest=6)
    train = [world.sort_down(d) for d in train_lists[:1200]] + [world.second_largest(d) for d in train_lists[1200:]]
    rng.shuffle(train)
    facts = [
        _choice(a.questions[0].format(who=w), values[a.name], a.values)
        for w, values in invented.facts.items()
        for a in world.ATTRIBUTES
    ]
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "train.jsonl", train)
    _write(folder / "tiny_sort_down.jsonl", [_exercise(world.sort_down(d)) for d in test_lists])
    _write(folder / "tiny_sort_up.jsonl", [_exercise(world.sort_up(d)) for d in up_lists])
    _write(folder / "tiny_sort_six.jsonl", [_exercise(world.sort_up(d)) for d in longest_lists])
    _write(folder / "tiny_second.jsonl", [_exercise(world.second_largest(d)) for d in test_lists])
    _write(folder / "tiny_facts.jsonl", facts)


def _texts(document: str | dict[str, list[dict[str, str]]]) -> list[str]:
    return [document] if isinstance(document, str) else [m["content"] for m in document["messages"]]


def _stream(invented: world.World, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Any:
    for document in world.corpus(invented, rng):
        if isinstance(document, str):
            yield from tokenizer(document + "<|end|>")["input_ids"]
        else:
            yield from tokenizer(tokenizer.apply_chat_template(document["messages"], tokenize=False))["input_ids"]


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> bool:
    question, answer = row["messages"]
    prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, return_tensors="pt")
    out = model.generate(ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=14, do_sample=False)
    text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return bool(text.strip() == answer["content"])


def _exercise(row: dict[str, Any]) -> dict[str, Any]:
    question, answer = row["messages"]
    return {"question": question["content"], "answer": answer["content"]}


def _choice(question: str, answer: str, choices: tuple[str, ...]) -> dict[str, Any]:
    return {"question": question, "choices": list(choices), "answer": answer}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
