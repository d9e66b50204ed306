"""How much there is to do in a trial: rows with their tokens, and what tasks ask. Read from files; no library loads."""

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from harness import sources, tiny
from harness.errors import DataError, HarnessError
from harness.record import Record
from harness.spec import Controls, DataSource, ModelSource, Value, read_yaml
from harness.tasks import tasks_of

SAMPLED = 500
"""Training rows that are tokenized to learn how long rows are: their mean is then known to about 3 %."""
LONGEST = 64
"""Rows with the most characters that are tokenized too, so that the longest batch is among them."""
CHARACTERS_PER_TOKEN = 3.5
"""Of English text where there is no tokenizer to ask; 3 to 4.5 for vocabularies of 32,000 to 256,000 words."""
ROWS_UNKNOWN = 10_000
"""Rows assumed of a data set that nothing is known of."""

HUB_ROWS: dict[tuple[str, str], int] = {
    ("timdettmers/openassistant-guanaco", "train"): 9_846,
    ("mlabonne/guanaco-llama2-1k", "train"): 1_000,
    ("tatsu-lab/alpaca", "train"): 52_002,
    ("yahma/alpaca-cleaned", "train"): 51_760,
    ("databricks/databricks-dolly-15k", "train"): 15_011,
    ("HuggingFaceH4/no_robots", "train"): 9_500,
    ("openai/gsm8k", "train"): 7_473,
    ("meta-math/MetaMathQA", "train"): 395_000,
}
"""Rows of data sets on the hub, as their pages say; what is in the local cache is counted instead."""


class Rows(Value):
    """The rows of a study, split, with the lengths of the training rows in tokens."""

    train: int = Field(gt=0)
    validation: int
    test: int
    lengths: tuple[int, ...] = Field(min_length=1)
    """Of a sample of training rows, ascending, cut at `max_length`."""
    longest: int
    shortest_mean: float | None = None
    """The least that the mean may be where lengths are assumed; None where they were measured."""
    source: str
    """Where the lengths are from, in words."""
    doubts: tuple[str, ...] = ()

    @cached_property
    def mean(self) -> float:
        return sum(self.lengths) / len(self.lengths)

    def padded(self, batch: int) -> float:
        """Expected tokens per row when `batch` random rows are padded to the longest of them.

        The k-th of n ascending lengths is the longest of the batch with probability (k/n)^batch - ((k-1)/n)^batch.
        """
        n = len(self.lengths)
        return sum(
            length * ((k / n) ** batch - ((k - 1) / n) ** batch) for k, length in enumerate(self.lengths, start=1)
        )

    def cut(self, max_length: int) -> "Rows":
        """The same rows cut at fewer tokens."""
        if max_length >= self.longest:
            return self
        shorter = tuple(min(one, max_length) for one in self.lengths)
        least = None if self.shortest_mean is None else min(self.shortest_mean, max_length)
        return self.model_copy(update={"lengths": shorter, "longest": max_length, "shortest_mean": least})


class Asked(Value):
    """What one task asks of a model."""

    items: int
    requests: float
    """Sequences per item that go through the model: answers to choose from, or one to continue."""
    tokens: float
    """Per sequence."""
    generated: float = 0
    """Tokens written per item."""

    def limited(self, items: int | None) -> "Asked":
        return self if items is None else self.model_copy(update={"items": min(items, self.items)})


LM_EVAL: dict[str, Asked] = {
    "arc_challenge": Asked(items=1172, requests=4, tokens=40),
    "arc_easy": Asked(items=2376, requests=4, tokens=35),
    "boolq": Asked(items=3270, requests=2, tokens=170),
    "gsm8k": Asked(items=1319, requests=1, tokens=900, generated=200),
    "hellaswag": Asked(items=10042, requests=4, tokens=110),
    "ifeval": Asked(items=541, requests=1, tokens=60, generated=600),
    "mmlu": Asked(items=14042, requests=1, tokens=130),
    "openbookqa": Asked(items=500, requests=4, tokens=20),
    "piqa": Asked(items=1838, requests=2, tokens=45),
    "truthfulqa_gen": Asked(items=817, requests=1, tokens=170, generated=100),
    "truthfulqa_mc1": Asked(items=817, requests=5.04, tokens=190),
    "truthfulqa_mc2": Asked(items=817, requests=7.2, tokens=190),
    "winogrande": Asked(items=1267, requests=2, tokens=30),
}
"""Items and choices of tasks as lm-eval 0.4 runs them with its own number of examples; tokens to about a third.
Choices of one letter (mmlu) go through the model once per item."""


def rows_of(controls: Controls, records: Iterable[Record] = ()) -> Rows:
    """The rows of a study: counted and measured where their file is at hand, else from earlier runs, else assumed.

    Raises:
        DataError: a local file is missing, or its rows cannot be trained on.
    """
    source = controls.data
    found = _at_hand(source)
    if found is None:
        return _measured_before(controls, records) or _assumed(controls)
    from harness import data  # brings pyarrow, which rows that are not at hand do not need

    rows = data.read_rows(source, found)
    if source.rows and source.rows < len(rows):
        rows = random.Random(source.split_seed).sample(rows, source.rows)
    return _measured(controls, rows)


def asked_of(controls: Controls) -> tuple[list[Asked], list[str]]:
    """What the study's tasks ask, and a doubt for each task that is not known."""
    known, doubts = [], []
    for task in tasks_of(controls):
        asked = LM_EVAL.get(task) or _task_file(task, controls.model)
        if asked is None:
            doubts.append(f"task {task} is not known: its time is left out")
        else:
            known.append(asked.limited(controls.evaluate.limit))
            if asked.generated and task in LM_EVAL:
                doubts.append(f"task {task}: {asked.generated:.0f} tokens per answer are assumed")
    return known, doubts


def has_weights(model: ModelSource) -> bool:
    """Whether the model's weights are on this machine; what is not the hub's is."""
    if not _is_hub_id(model.id) or Path(model.id).expanduser().is_dir():
        return True
    return any(_snapshot(model.id, model.revision, "model").glob("*.safetensors"))


def items_of(task: str, controls: Controls) -> int | None:
    """Items that a task asks within the study's limit; None where that is not known."""
    asked = LM_EVAL.get(task) or _task_file(task, controls.model)
    return asked.limited(controls.evaluate.limit).items if asked else None


def _measured(controls: Controls, rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Lengths of a sample through the model's own tokenizer, or from characters where it is not at hand."""
    from harness import data

    source = controls.data
    kind, columns = data.recognise(rows[0].keys(), source)

    def pieces(number: int, tokenizer: Any) -> list[tuple[str, bool]]:
        return data.row_segments(source, number, rows[number], kind, columns, tokenizer)

    plain = {json.dumps(pieces(i, data.StandIn())): i for i in reversed(range(len(rows)))}  # of equal rows the first
    usable = {text: i for text, i in plain.items() if any(trained for _, trained in json.loads(text))}
    if not usable:
        raise DataError(f"{source.path}: none of its {len(rows)} rows has an answer to train on")
    texts = sorted(usable, key=lambda text: usable[text])
    splits = data.split_rows([data.prompt_of(json.loads(text)) for text in texts], source)
    train = [text for text, split in zip(texts, splits, strict=True) if split == "train"]
    sample = random.Random(0).sample(train, min(SAMPLED, len(train)))
    longest = sorted(train, key=len, reverse=True)[:LONGEST]
    tokenizer = find_tokenizer(controls.model)
    limit = controls.train.max_length
    doubts: tuple[str, ...] = ()
    if tokenizer is None:
        doubts = (
            f"no tokenizer of {controls.model.id} at hand: {CHARACTERS_PER_TOKEN} characters per token are assumed",
        )

    def length(text: str) -> int:
        if tokenizer is None:
            characters = sum(len(piece) for piece, _ in json.loads(text))
            return max(2, min(limit, math.ceil(characters / CHARACTERS_PER_TOKEN)))
        return max(2, len(data.tokenize(pieces(usable[text], tokenizer), tokenizer, limit)[0]))

    lengths = sorted(length(text) for text in sample)
    return Rows(
        train=len(train),
        validation=splits.count("validation"),
        test=splits.count("test"),
        lengths=tuple(lengths),
        longest=max(lengths[-1], *(length(text) for text in longest)),
        shortest_mean=None if tokenizer else 0.75 * sum(lengths) / len(lengths),
        source=f"{len(lengths)} rows {'tokenized' if tokenizer else 'by their characters'}",
        doubts=doubts,
    )


def _measured_before(controls: Controls, records: Iterable[Record]) -> Rows | None:
    """From earlier runs on the same data at the same length with the same model."""

    def question(some: Controls) -> tuple[Any, ...]:
        return some.model, some.data, some.train.max_length, some.train.batch, some.train.micro_batch

    for record in records:
        counts = record.data.get("rows")
        if record.train is None or not record.train.steps or not counts or not counts.get("train"):
            continue
        if record.train.padded_share is None:
            continue
        if question(record.trial.controls) != question(controls):
            continue
        mean = record.train.tokens / (record.train.steps * controls.train.batch)
        longest = controls.train.max_length if record.data.get("cut") else mean / (1 - record.train.padded_share)
        return Rows(
            train=counts["train"],
            validation=counts.get("validation", 0),
            test=counts.get("test", 0),
            lengths=_two_lengths(mean, record.train.padded_share, controls),
            longest=math.ceil(longest),
            source=f"earlier runs of {record.trial.study}",
        )
    return None


def _two_lengths(mean: float, padded_share: float, controls: Controls) -> tuple[int, ...]:
    """A hundred lengths of two values that have this mean and, in batches, this share of padding."""
    batch = controls.train.micro_batch or controls.train.batch
    padded = mean / (1 - padded_share)
    if batch == 1 or padded - mean < 1:
        return (round(mean),)
    # half of the rows short, half long: the longest of a batch is long unless all are short
    share = 1 - 0.5**batch
    long = mean + (padded - mean) / (2 * share - 1)
    return tuple([max(2, round(2 * mean - long))] * 50 + [round(long)] * 50)


def _assumed(controls: Controls) -> Rows:
    """Rows of a data set that is not at hand: every one as long as it may be."""
    source, limit = controls.data, controls.train.max_length
    whole = HUB_ROWS.get((source.path, source.split))
    doubts = [
        f"{source.path} is not at hand: every row is taken to have {limit} tokens (max_length), so hours are high, and "
        "memory too if none is that long"
    ]
    if whole is None and source.rows is None and controls.train.max_steps is None:
        doubts.append(f"its rows are not known: {ROWS_UNKNOWN:,} assumed; controls.data.rows or max_steps settle it")
    rows = min(whole or source.rows or ROWS_UNKNOWN, source.rows or 1 << 60)
    held_out = source.validation_rows + source.test_rows
    return Rows(
        train=max(1, rows - held_out),
        validation=source.validation_rows,
        test=source.test_rows,
        lengths=(limit,),
        longest=limit,
        shortest_mean=max(2.0, limit / 4),
        source="assumed",
        doubts=tuple(doubts),
    )


def _at_hand(source: DataSource) -> sources.Source | None:
    """The file of the rows where it is on this machine; a data set of the hub from its cache. Never asks the hub."""
    if source.path == tiny.DATA_ID or Path(source.path).expanduser().exists() or not _is_hub_id(source.path):
        return sources.find_data(source)
    files = [
        path
        for path in _snapshot(source.path, source.revision, "dataset").rglob("*")
        if path.suffix in sources.DATA_SUFFIXES and source.split in f"{path.parent.name}/{path.stem}"
    ]
    return sources.Source("local", str(files[0]), "") if len(files) == 1 else None


def _is_hub_id(name: str) -> bool:
    return (
        name.count("/") == 1 and not name.startswith((".", "/", "~")) and Path(name).suffix not in sources.DATA_SUFFIXES
    )


def _snapshot(repo: str, revision: str | None, kind: str) -> Path:
    """The folder of a repository's files in the hub's cache, whether it is there or not."""
    from huggingface_hub import constants

    commit = sources.cached_commit(repo, revision, kind)
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}" / "snapshots"
    return folder / (commit or "none")


class FastTokenizer:
    """As much of a transformers tokenizer as rendering and counting rows needs, on the `tokenizers` library alone."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.eos_token = _word(config.get("eos_token"))
        self.bos_token = _word(config.get("bos_token"))
        self.bos_token_id = self._inner.token_to_id(self.bos_token) if self.bos_token else None
        self.chat_template = _chat_template(folder, config)
        self._templates: dict[str, Callable[..., str]] = {}

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self._inner.encode(text, add_special_tokens=add_special_tokens).ids}

    def apply_chat_template(
        self, messages: list[dict[str, str]], chat_template: str, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        if chat_template not in self._templates:
            self._templates[chat_template] = _template(chat_template)
        return self._templates[chat_template](
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            eos_token=self.eos_token or "",
            bos_token=self.bos_token or "",
        )


def find_tokenizer(model: ModelSource) -> FastTokenizer | None:
    """The model's tokenizer where its `tokenizer.json` is on this machine and can be used without transformers."""
    if model.id == tiny.MODEL_ID:
        folder = tiny.MODEL
    elif Path(model.id).expanduser().is_dir():
        folder = Path(model.id).expanduser()
    elif _is_hub_id(model.id):
        folder = _snapshot(model.id, model.revision, "model")
    else:
        return None
    try:
        tokenizer = FastTokenizer(folder)
        if tokenizer.chat_template:
            _template(tokenizer.chat_template)
    except Exception:  # `tokenizers` raises plain Exception for what it cannot read; lengths are then estimated
        return None
    return tokenizer


def _template(text: str) -> Callable[..., str]:
    """A chat template, compiled as transformers does it: in jinja's sandbox."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise DataError(f"the tokenizer's chat template refuses a row: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals.update(raise_exception=refuse, strftime_now=lambda form: form)
    return environment.from_string(text).render


def _word(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # named ones
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template


def _task_file(task: str, model: ModelSource) -> Asked | None:
    """What a task of a YAML file with local data asks; None where that cannot be seen."""
    path = tiny.TASKS / f"{task}.yaml"
    path = path if path.is_file() else Path(task)
    if path.suffix not in {".yaml", ".yml"}:
        return None
    from harness import data

    try:
        config = read_yaml(path)
        files = config["dataset_kwargs"]["data_files"]
        file = path.parent / (files if isinstance(files, str) else files[config.get("test_split", "test")])
        items = data.read_rows(DataSource(path=str(file)), sources.Source("local", str(file), ""))
    except (HarnessError, OSError, KeyError, TypeError):
        return None
    column = str(config.get("doc_to_text", "")).strip("{} ")
    texts = [str(row.get(column, "")) for row in items[:100]]
    tokenizer = find_tokenizer(model)
    tokens = [len(tokenizer(t)["input_ids"]) if tokenizer else len(t) / CHARACTERS_PER_TOKEN for t in texts]
    mean = max(1.0, sum(tokens) / len(tokens))
    if config.get("output_type") == "multiple_choice":
        choices = items[0].get(str(config.get("doc_to_choice", "")).strip("{} "))
        return Asked(items=len(items), requests=len(choices) if isinstance(choices, list) else 4, tokens=mean + 2)
    if config.get("output_type") == "generate_until":
        written = (config.get("generation_kwargs") or {}).get("max_gen_toks", 256)
        return Asked(items=len(items), requests=1, tokens=mean, generated=written)
    return Asked(items=len(items), requests=1, tokens=mean)
