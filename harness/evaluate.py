"""The evaluation stage: held-out loss item by item, and tasks through lm-eval with what became of every item."""

import contextlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from harness import tiny
from harness.data import IGNORED, Tokens
from harness.errors import DataError
from harness.record import Example, Score
from harness.spec import Evaluation, read_yaml
from harness.tasks import Role

FEWSHOT_SEED = 1234
"""lm-eval's own default, so that few-shot examples are those of published scores."""

REFERENCE_ROWS = 64
"""Test rows on which distributions are compared."""
REFERENCE_BYTES = 2 << 30
"""Of the reference's log-probabilities, kept on the host so that never two models have to be in memory at once: 256
answer tokens in each of 64 rows with a vocabulary of 32,000."""

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def held_out_loss(
    model: "PreTrainedModel", rows: Sequence[Tokens], name: str, batch: int, pad: int
) -> tuple[list[Score], list[Example]]:
    """Mean negative log-likelihood per answer token of each row, in nats; the score is the mean over rows."""
    losses: dict[int, float] = {}
    for some, logits, labels in _batches(model, rows, batch, pad):
        # row by row: fp32 copies of a whole batch's logits would need more memory than many a training step
        mean_nll = [
            torch.nn.functional.cross_entropy(logits[row, :-1].float(), labels[row, 1:], ignore_index=IGNORED)
            for row in range(len(some))
        ]
        del logits
        for i, loss in zip(some, torch.stack(mean_nll).tolist(), strict=True):
            losses[i] = loss
    examples = [
        Example(task=name, metric="loss", example_id=row.example_id, score=losses[i]) for i, row in enumerate(rows)
    ]
    mean = sum(losses.values()) / len(losses)
    return [Score(task=name, metric="loss", value=mean, items=len(rows), role="loss", higher_is_better=False)], examples


@dataclass(frozen=True)
class Distributions:
    """What a model expects at every answer token of some rows: the reference that other models are held against."""

    rows: Sequence[Tokens]
    log_probabilities: Sequence[torch.Tensor]
    """By row, on the host: [answer tokens, vocabulary], float32. In 16 bits rounding alone would be a divergence of
    1e-4, more than 8-bit weights cause."""


@torch.inference_mode()
def distributions(model: "PreTrainedModel", rows: Sequence[Tokens], batch: int, pad: int) -> Distributions:
    """The model's next-token distributions on the first rows, up to `REFERENCE_ROWS` and `REFERENCE_BYTES`."""
    kept = _held(rows, int(model.config.get_text_config().vocab_size))
    found: dict[int, torch.Tensor] = {}
    for some, logits, labels in _batches(model, kept, batch, pad):
        found |= {i: _of_answers(logits[row], labels[row]).cpu() for row, i in enumerate(some)}
        del logits
    return Distributions(kept, [found[i] for i in range(len(kept))])


@torch.inference_mode()
def divergence(
    model: "PreTrainedModel", reference: Distributions, name: str, batch: int, pad: int
) -> tuple[list[Score], list[Example]]:
    """KL(reference || model) per answer token, in nats: the mean over a row's answer, and over rows."""
    found: dict[int, float] = {}
    for some, logits, labels in _batches(model, reference.rows, batch, pad):
        for row, i in enumerate(some):
            wanted = reference.log_probabilities[i].to(logits.device).double()
            own = _of_answers(logits[row], labels[row]).double()
            found[i] = float((wanted.exp() * (wanted - own)).sum(dim=-1).mean())
        del logits
    examples = [
        Example(task=name, metric="kl", example_id=row.example_id, score=found[i])
        for i, row in enumerate(reference.rows)
    ]
    score = Score(
        task=name, metric="kl", value=sum(found.values()) / len(found), items=len(found), role="loss",
        higher_is_better=False,
    )  # fmt: skip
    return [score], examples


def _held(rows: Sequence[Tokens], vocabulary: int) -> Sequence[Tokens]:
    """The rows whose distributions there is room for, the first one in any case."""
    used = 0
    for count, row in enumerate(rows[:REFERENCE_ROWS]):
        used += 4 * vocabulary * sum(label != IGNORED for label in row.labels[1:])
        if count and used > REFERENCE_BYTES:
            return rows[:count]
    return rows[:REFERENCE_ROWS]


def _of_answers(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of one row at the positions before its answer tokens."""
    return torch.log_softmax(logits[:-1][labels[1:] != IGNORED].float(), dim=-1)


def _batches(
    model: "PreTrainedModel", rows: Sequence[Tokens], batch: int, pad: int
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """The numbers of a batch's rows, its logits and its labels; rows of like length together, padded on the right."""
    model.eval()
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        longest = max(len(rows[i].ids) for i in some)
        ids = torch.tensor([rows[i].ids + [pad] * (longest - len(rows[i].ids)) for i in some], device=device)
        labels = torch.tensor(
            [rows[i].labels + [IGNORED] * (longest - len(rows[i].labels)) for i in some], device=device
        )
        mask = torch.tensor([[1] * len(rows[i].ids) + [0] * (longest - len(rows[i].ids)) for i in some], device=device)
        yield some, model(input_ids=ids, attention_mask=mask, use_cache=False).logits, labels


def run_tasks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    roles: Mapping[str, Role],
    settings: Evaluation,
    chat_template: bool,
) -> tuple[list[Score], list[Example]]:
    """Every task's metrics and the outcome of every item.

    Raises:
        DataError: lm-eval knows no such task, or its data cannot be had.
    """
    if not roles:
        return [], []
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model.eval()
    manager, wanted, names = _load(roles, TaskManager)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch, device=str(model.device))
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars do not heed TQDM_DISABLE
        loaded = manager.load(wanted)
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        # not simple_evaluate, which describes the machine by a dozen commands (pip list, lscpu ...) on every call
        results = evaluate(
            lm=lm,
            task_dict=loaded,
            limit=settings.limit,
            apply_chat_template=chat_template,
            bootstrap_iters=0,
            log_samples=True,
        )
    assert results is not None
    scores: list[Score] = []
    examples: list[Example] = []
    for task, samples in results["samples"].items():
        role = names.get(task) or next((r for t, r in names.items() if task.startswith(t)), "target")
        for key, value in results["results"][task].items():
            metric = _metric(key)
            if metric is None or not isinstance(value, int | float):
                continue
            name, filtered = metric
            some = [s for s in samples if s.get("filter", "none") == filtered and name in s]
            better = results["higher_is_better"].get(task, {}).get(name, True)
            label = name if filtered == "none" else f"{name}[{filtered}]"
            scores.append(
                Score(
                    task=task, metric=label, value=float(value), items=len(some), role=role,
                    higher_is_better=bool(better), majority=majority([_target(s) for s in some]),
                )
            )  # fmt: skip
            examples += [_example(task, label, name, s) for s in some]
    return scores, examples


def majority(targets: Sequence[str]) -> float | None:
    """What always giving the most frequent target would score."""
    return Counter(targets).most_common(1)[0][1] / len(targets) if targets else None


def _load(roles: Mapping[str, Role], manager: Any) -> tuple[Any, list[Any], dict[str, Role]]:
    """Names and YAML files as lm-eval takes them. Data files in a YAML are meant relative to it."""
    wanted: list[Any] = []
    names: dict[str, Role] = {}
    folders: list[str] = []
    for task, role in roles.items():
        path = tiny.TASKS / f"{task}.yaml"
        path = path if path.is_file() else Path(task)
        if path.suffix not in {".yaml", ".yml"}:
            wanted.append(task)
            names[task] = role
        elif _is_plain(path):
            config = _resolved(path)
            wanted.append(config)
            names[config["task"]] = role
        else:  # its own functions or includes need lm-eval's loader
            folders.append(str(path.parent))
            wanted.append(path.stem)
            names[path.stem] = role
    own = all(isinstance(w, dict) for w in wanted)
    tasks = manager(include_path=folders or None, include_defaults=not own)
    for name in (w for w in wanted if isinstance(w, str)):
        if name not in tasks.all_tasks:
            raise DataError(f"lm-eval has no task {name!r}", "lm-eval ls tasks, or the path of a task's YAML file")
    return tasks, wanted, names


def _is_plain(path: Path) -> bool:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except yaml.YAMLError:
        return False
    return isinstance(config, dict) and "include" not in config and "task" in config


def _resolved(path: Path) -> dict[str, Any]:
    config = dict(read_yaml(path))
    kwargs = dict(config.get("dataset_kwargs") or {})
    files = kwargs.get("data_files")
    if isinstance(files, dict):
        kwargs["data_files"] = {split: str((path.parent / name).resolve()) for split, name in files.items()}
    elif isinstance(files, str):
        kwargs["data_files"] = str((path.parent / files).resolve())
    config["dataset_kwargs"] = kwargs
    return config


def _metric(key: str) -> tuple[str, str] | None:
    """Name and filter of a key such as `exact_match,strict-match`; None for what is not a metric."""
    name, comma, filtered = key.partition(",")
    if not comma or name.endswith("_stderr") or name == "alias":
        return None
    return name, filtered


def _example(task: str, label: str, metric: str, sample: Mapping[str, Any]) -> Example:
    value = sample[metric]
    answers = sample["filtered_resps"]
    if len(answers) > 1:  # multiple choice: the likeliest
        prediction = _choice(sample, max(range(len(answers)), key=lambda i: answers[i][0]))
    else:
        prediction = str(answers[0])
    return Example(
        task=task,
        metric=label,
        example_id=f"{sample['doc_id']}-{str(sample.get('doc_hash', ''))[:8]}",
        score=float(value[0] if isinstance(value, list | tuple) else value),
        prediction=prediction,
        target=_target(sample),
    )


def _target(sample: Mapping[str, Any]) -> str:
    """The right answer as text; of a multiple choice lm-eval gives its number."""
    target = sample["target"]
    return _choice(sample, target) if isinstance(target, int) and len(sample["arguments"]) > 1 else str(target)


def _choice(sample: Mapping[str, Any], number: int) -> str:
    return str(sample["arguments"][number][1]).strip()
