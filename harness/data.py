"""Rows of text in, tokenized splits out: the same for every arm and seed of a study."""

import contextlib
import csv
import json
import random
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import DataError, did_you_mean
from harness.sources import Source
from harness.spec import DataSource, digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CACHE_VERSION = 2
"""Raised when the same rows would be tokenized or split differently."""

IGNORED = -100
"""The label of a token that adds nothing to the loss."""

SplitName = Literal["train", "validation", "test"]
Row = Mapping[str, Any]

PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "response"),
    ("input", "output"),
)  # fmt: skip
"""Columns that are recognised as a prompt and its completion."""

CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""The prompts of Stanford Alpaca (tatsu-lab/stanford_alpaca, train.py)."""

PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}\n"
    "{% elif m['role'] == 'user' %}### Human: {{ m['content'] }}\n"
    "{% else %}### Assistant: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Assistant: {% endif %}"
)
"""For base models without a chat template: the markup of timdettmers/openassistant-guanaco."""


@dataclass(frozen=True)
class Tokens:
    """One tokenized row: ids and labels of equal length, a label being its id or `IGNORED`."""

    example_id: str
    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Prepared:
    """The study's rows, split and tokenized, with what was recognised and dropped."""

    train: list[Tokens]
    validation: list[Tokens]
    test: list[Tokens]
    facts: dict[str, Any]
    """`format`, rows per split, `dropped` by reason, `digest` of the tokenized rows."""

    @property
    def conversational(self) -> bool:
        return self.facts["format"] == "messages"


def prepare(
    source: DataSource, found: Source, tokenizer: "PreTrainedTokenizerBase", max_length: int, cache: Path
) -> Prepared:
    """The splits from the cache, or made and put there. The key covers content, settings and tokenizer.

    Raises:
        DataError: unreadable, empty, of an unknown shape, or too few rows for the splits.
    """
    settings = source.model_dump(exclude={"path", "revision"})
    key = digest([CACHE_VERSION, found.digest, settings, _tokenizer_digest(tokenizer), max_length])
    path = cache / f"{key}.parquet"
    with contextlib.suppress(OSError, pa.ArrowInvalid):  # missing or cut off: make it (again)
        return _read(path)
    _write(path, _make(source, found, tokenizer, max_length))
    return _read(path)


def read_rows(source: DataSource, found: Source) -> list[Row]:
    """The rows as they are, from a file or the hub."""
    if found.kind == "hub":
        import datasets

        loaded = datasets.load_dataset(found.location, source.subset, revision=found.revision, split=source.split)
        return [dict(r) for r in loaded]
    path = Path(found.location)
    rows = _read_file(path)
    if not rows:
        raise DataError(f"{path}: has no rows")
    return rows


def check(source: DataSource, found: Source) -> None:
    """Look at the rows as far as that goes without a tokenizer, so that a mistake ends the command and not each trial.

    Raises:
        DataError: as `read_rows`, `recognise` and `split_rows`.
    """
    if found.kind == "hub":
        return
    rows = read_rows(source, found)
    kind, columns = recognise(rows[0].keys(), source)
    stand_in: Any = StandIn()
    pieces = [row_segments(source, number, row, kind, columns, stand_in) for number, row in enumerate(rows)]
    usable = dict.fromkeys(json.dumps(p) for p in pieces if any(trained for _, trained in p))
    if not usable:
        raise DataError(f"{source.path}: none of its {len(rows)} rows has an answer to train on")
    split_rows([prompt_of(json.loads(p)) for p in list(usable)[: source.rows]], source)


class StandIn:
    """In a tokenizer's place where rows are only looked at."""

    eos_token = ""
    chat_template = None

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "".join(f"{m['role']}: {m['content']}\n" for m in messages)


def row_segments(
    source: DataSource, number: int, row: Row, kind: str, columns: Mapping[str, str], tokenizer: Any
) -> list[tuple[str, bool]]:
    """`segments`, with the row's number in what goes wrong."""
    try:
        return segments(row, kind, columns, tokenizer)
    except KeyError as error:
        raise DataError(f"{source.path}: row {number + 1} has no column {error}") from error
    except DataError as error:
        raise DataError(f"{source.path}: row {number + 1}: {error.message}", error.remedy) from error


def prompt_of(pieces: Sequence[Sequence[Any]]) -> str:
    """What rows that must share a split have in common."""
    return "".join(str(text) for text, trained in pieces[:1] if not trained) or json.dumps(pieces)


def recognise(columns: Iterable[str], source: DataSource) -> tuple[str, dict[str, str]]:
    """The format of rows with these columns, and our name of each column to theirs.

    Raises:
        DataError: the columns fit no format, or not the one that was named.
    """
    columns = [str(c) for c in columns]
    given = dict(source.columns)
    for ours, theirs in given.items():
        if theirs not in columns:
            raise DataError(
                f"controls.data.columns: no column {theirs!r} for {ours!r}; {did_you_mean(theirs, columns)}"
            )
    known = {**{c: c for c in columns}, **given}
    candidates: list[tuple[str, dict[str, str]]] = []
    for column in CONVERSATION_COLUMNS:
        if column in known:
            candidates.append(("messages", {"messages": known[column]}))
    if {"instruction", "output"} <= known.keys():
        candidates.append(("alpaca", {k: known[k] for k in ("instruction", "input", "output") if k in known}))
    for prompt, completion in PAIRS:
        if {prompt, completion} <= known.keys():
            candidates.append(("prompt-completion", {"prompt": known[prompt], "completion": known[completion]}))
    if "text" in known:
        candidates.append(("text", {"text": known["text"]}))
    fitting = [c for c in candidates if source.format in {"auto", c[0]}]
    if fitting:
        return fitting[0]
    shown = ", ".join(columns) or "none"
    if source.format == "auto":
        raise DataError(
            f"{source.path}: no format fits its columns: {shown}",
            "name them: controls.data.columns='{prompt: COLUMN, completion: COLUMN}' (or text, messages)",
        )
    needed = {"messages": "messages", "alpaca": "instruction", "prompt-completion": "prompt", "text": "text"}[
        source.format
    ]
    also = f"; the columns fit format {candidates[0][0]}" if candidates else ""
    raise DataError(
        f'{source.path}: has no column "{needed}" for format {source.format}; columns: {shown}{also}',
        f"controls.data.format={candidates[0][0]}" if candidates else f"controls.data.columns='{{{needed}: COLUMN}}'",
    )


def segments(
    row: Row, kind: str, columns: Mapping[str, str], tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple[str, bool]]:
    """A row as pieces of text, each with whether the model is trained to write it."""
    if kind == "messages":
        return render(_messages(row[columns["messages"]]), tokenizer)
    if kind == "text":
        text = _plain(row[columns["text"]])
        marked = split_markup(text)
        return render(marked, tokenizer) if marked else [(text + (tokenizer.eos_token or ""), bool(text))]
    end = tokenizer.eos_token or ""
    if kind == "alpaca":
        fields = {k: _plain(row[c]) for k, c in columns.items()}
        prompt = (ALPACA_INPUT if fields.get("input") else ALPACA).format(**fields)
        return [(prompt, False), (fields["output"] + end, True)] if fields["output"] else [(prompt, False)]
    asked, answered = row[columns["prompt"]], row[columns["completion"]]
    if isinstance(asked, list) and isinstance(answered, list):  # TRL's conversational prompt and completion
        return render(_messages([*asked, *answered]), tokenizer)
    prompt, completion = _plain(asked), _plain(answered)
    if not completion:
        return [(prompt, False)]
    if not prompt[-1:].isspace() and not completion[:1].isspace():
        prompt += "\n"
    return [(prompt, False), (completion + end, True)]


def render(messages: Sequence[Mapping[str, str]], tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, bool]]:
    """A conversation through the tokenizer's chat template, cut so that each answer is a piece of its own."""
    template = tokenizer.chat_template or PLAIN_TEMPLATE
    pieces: list[tuple[str, bool]] = []
    done = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _template(tokenizer, messages[:i], template, prompt=True)
        after = _template(tokenizer, messages[: i + 1], template, prompt=False)
        if not before.startswith(done) or not after.startswith(before):
            raise DataError(
                "the tokenizer's chat template changes earlier turns when one follows, so answers cannot be found",
                "give the rows as prompt and completion: controls.data.format=prompt-completion",
            )
        # an empty answer would only teach to stop
        pieces += [(before[len(done) :], False), (after[len(before) :], bool(message["content"]))]
        done = after
    return pieces


def split_markup(text: str) -> list[dict[str, str]]:
    """A conversation written into one text, as in guanaco's editions: `[INST] ..` or `### Human: ..`; else empty."""
    if "[INST]" in text and "[/INST]" in text:
        messages: list[dict[str, str]] = []
        for part in text.split("[INST]")[1:]:
            question, _, answer = part.partition("[/INST]")
            messages.append({"role": "user", "content": question.strip()})
            answer = answer.replace("<s>", "").replace("</s>", "").strip()
            if answer:
                messages.append({"role": "assistant", "content": answer})
        return messages
    if text.lstrip().startswith("### Human:") and "### Assistant:" in text:
        messages = []
        for part in text.split("### ")[1:]:
            speaker, colon, said = part.partition(":")
            role = {"Human": "user", "Assistant": "assistant"}.get(speaker)
            if role and colon:
                messages.append({"role": role, "content": said.strip()})
            elif messages:
                messages[-1]["content"] += "\n### " + part
        return messages
    return []


def tokenize(
    pieces: Sequence[tuple[str, bool]], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> tuple[list[int], list[int]]:
    """Ids and labels of a row, cut at `max_length`. Pieces are tokenized one by one, as prompt and answer are."""
    ids: list[int] = []
    labels: list[int] = []
    if tokenizer.bos_token_id is not None and not (pieces and pieces[0][0].startswith(str(tokenizer.bos_token))):
        start = tokenizer("a")["input_ids"][0]
        if start == tokenizer.bos_token_id:
            ids, labels = [start], [IGNORED]
    for text, trained in pieces:
        some = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += some
        labels += some if trained else [IGNORED] * len(some)
    return ids[:max_length], labels[:max_length]


def split_rows(prompts: Sequence[str], source: DataSource) -> list[SplitName]:
    """The split of each row. Rows with the same prompt go to the same split, or the test would know the answers."""
    unique = list(dict.fromkeys(prompts))
    random.Random(source.split_seed).shuffle(unique)
    rows_of = Counter(prompts)
    wanted: list[tuple[SplitName, int]] = [("test", source.test_rows), ("validation", source.validation_rows)]
    place: dict[str, SplitName] = {}
    queue = iter(unique)
    for name, rows in wanted:
        taken = 0
        while taken < rows and (prompt := next(queue, None)) is not None:
            place[prompt] = name
            taken += rows_of[prompt]
    splits = [place.get(p, "train") for p in prompts]
    if "train" not in splits:
        tenth = len(unique) // 10
        remedy = f"controls.data.validation_rows={tenth} controls.data.test_rows={tenth}"
        raise DataError(
            f"{source.path}: {len(prompts)} usable rows with {len(unique)} different prompts, which stay together; "
            f"validation_rows={source.validation_rows} and test_rows={source.test_rows} leave none to train on",
            remedy if tenth else "more rows: at least three different prompts, and better hundreds",
        )
    return splits


def _make(source: DataSource, found: Source, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> pa.Table:
    rows = read_rows(source, found)
    if source.rows and source.rows < len(rows):
        rows = random.Random(source.split_seed).sample(rows, source.rows)
    kind, columns = recognise(rows[0].keys(), source)
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    kept: list[tuple[str, str, list[int], list[int]]] = []
    conversational = kind == "messages"
    for number, row in enumerate(rows):
        pieces = row_segments(source, number, row, kind, columns, tokenizer)
        conversational |= kind == "text" and len(pieces) > 1
        whole = json.dumps(pieces)
        if whole in seen:
            dropped["duplicate"] += 1
            continue
        seen.add(whole)
        ids, labels = tokenize(pieces, tokenizer, max_length)
        if not any(label != IGNORED for label in labels[1:]):
            dropped["no answer within max_length" if any(t for _, t in pieces) else "no answer"] += 1
            continue
        kept.append((prompt_of(pieces), digest(whole), ids, labels))
    if not kept:
        why = ", ".join(f"{n} {r}" for r, n in dropped.items())
        raise DataError(
            f"{source.path}: no row can be trained on ({why})", "a larger controls.train.max_length, or another format"
        )
    splits = split_rows([k[0] for k in kept], source)
    facts = {
        "format": "messages" if conversational else kind,
        "columns": dict(columns),
        "rows": dict(Counter(splits)),
        "dropped": dict(dropped),
        "tokens": sum(len(k[2]) for k in kept),
        "cut": sum(len(k[2]) == max_length for k in kept),
        "digest": digest([k[1:] for k in kept], 16),
    }
    table = pa.table(
        {
            "split": pa.array(splits, pa.string()),
            "example_id": pa.array([f"{i}-{k[1][:8]}" for i, k in enumerate(kept)], pa.string()),
            "ids": pa.array([k[2] for k in kept], pa.list_(pa.int32())),
            "labels": pa.array([k[3] for k in kept], pa.list_(pa.int32())),
        }
    )
    return table.replace_schema_metadata({b"facts": json.dumps(facts).encode()})


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)


def _read(path: Path) -> Prepared:
    table = pq.read_table(path)
    splits: dict[str, list[Tokens]] = {"train": [], "validation": [], "test": []}
    for row in table.to_pylist():
        splits[row["split"]].append(Tokens(row["example_id"], row["ids"], row["labels"]))
    return Prepared(facts=json.loads(table.schema.metadata[b"facts"]), **splits)


def _read_file(path: Path) -> list[Row]:
    try:
        if path.suffix.lower() == ".parquet":
            return [dict(r) for r in pq.read_table(path).to_pylist()]
        if path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return [dict(r) for r in csv.DictReader(file)]
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
            return _objects(json.loads(text), path)
        return _json_lines(text, path)
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid, json.JSONDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix.lower().lstrip('.')}: {error}") from error


def _json_lines(text: str, path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut at U+2028 inside a string
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}: line {number} is not JSON: {error.msg}") from error
    return _objects(rows, path)


def _objects(rows: list[Any], path: Path) -> list[Row]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: row {number} is {type(row).__name__}, a row is an object with named fields")
    return rows


def _messages(value: Any) -> list[dict[str, str]]:
    """One conversation, in `role`/`content` or ShareGPT's `from`/`value`."""
    if not isinstance(value, list):
        raise DataError(f"messages is a list of turns, this is {type(value).__name__}")
    messages = []
    for turn in value:
        if not isinstance(turn, dict):
            raise DataError(f"a turn is an object with role and content, this is {type(turn).__name__}")
        role = turn.get("role", turn.get("from"))
        if role not in ROLES:
            raise DataError(f"a turn's role is {role!r}; {did_you_mean(str(role), ROLES)}")
        messages.append({"role": ROLES[role], "content": _plain(turn.get("content", turn.get("value")))})
    return messages


def _plain(value: Any) -> str:
    """A value as text. 0 and false are answers; only what is missing is empty."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        return "".join(str(p.get("text") or "") for p in value)  # content in parts
    raise DataError(f"a text is expected, this is {type(value).__name__}: {str(value)[:60]}")


def _template(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]], template: str, prompt: bool
) -> str:
    return str(
        tokenizer.apply_chat_template(
            [dict(m) for m in messages], chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
    )


def _tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    probe = "The quick brown fox, 1234567890.\n### é 漢"
    return digest(
        [type(tokenizer).__name__, len(tokenizer), tokenizer(probe)["input_ids"], tokenizer.chat_template or ""]
    )
