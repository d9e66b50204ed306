"""Rows in, tokenized splits out: every format, the loss on answers only, and mistakes named with their place."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data import IGNORED, Prepared, Tokens, prepare, recognise, split_markup, split_rows
from harness.errors import DataError
from harness.sources import find_data
from harness.spec import DataSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "real"
END = "<|end|>"
Rows = list[dict[str, Any]]
Prepare = Callable[..., Prepared]


@pytest.fixture
def prepared(tokenizer: "PreTrainedTokenizerBase", tmp_path: Path) -> Prepare:
    """Prepares rows, or a file, with one row each for validation and test."""

    def make(given: Rows | Path, /, *, max_length: int = 4096, **settings: Any) -> Prepared:
        path = given if isinstance(given, Path) else tmp_path / "rows.jsonl"
        if not isinstance(given, Path):
            path.write_text("".join(json.dumps(r) + "\n" for r in given))
        source = DataSource.model_validate({"path": str(path), "validation_rows": 1, "test_rows": 1, **settings})
        return prepare(source, find_data(source), tokenizer, max_length, tmp_path / "cache")

    return make


def everything(found: Prepared) -> list[Tokens]:
    return [*found.train, *found.validation, *found.test]


def texts(row: Tokens, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, list[str]]:
    """The whole row, and every stretch of it that the loss is on."""
    stretches: list[list[int]] = [[]]
    for label in row.labels:
        if label != IGNORED:
            stretches[-1].append(label)
        elif stretches[-1]:
            stretches.append([])
    return str(tokenizer.decode(row.ids)), [str(tokenizer.decode(s)) for s in stretches if s]


def four(row: Callable[[str], dict[str, Any]]) -> Rows:
    return [row(letter) for letter in "abcd"]


TURNS = [("user", "Hi {}"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao {}")]
CHAT = f"### Human: Hi {{}}\n### Assistant: Hello{END}### Human: Bye\n### Assistant: Ciao {{}}{END}"
ANSWERS = [f"Hello{END}", f"Ciao {{}}{END}"]
SHAREGPT = {"user": "human", "assistant": "gpt"}

FORMATS: dict[str, tuple[Callable[[str], dict[str, Any]], str, str, list[str]]] = {
    "messages": (
        lambda x: {"messages": [{"role": role, "content": text.format(x)} for role, text in TURNS]},
        "messages", CHAT, ANSWERS,
    ),
    "ShareGPT": (
        lambda x: {"conversations": [{"from": SHAREGPT[role], "value": text.format(x)} for role, text in TURNS]},
        "messages", CHAT, ANSWERS,
    ),
    "system turn": (
        lambda x: {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": x},
                                {"role": "assistant", "content": "y"}]},
        "messages", f"Be kind.\n### Human: {{}}\n### Assistant: y{END}", [f"y{END}"],
    ),
    "prompt, completion": (
        lambda x: {"prompt": f"Say {x}", "completion": f" {x}"},
        "prompt-completion", f"Say {{}} {{}}{END}", [f" {{}}{END}"],
    ),
    "prompt, response": (
        lambda x: {"prompt": f"Say {x}", "response": x}, "prompt-completion", f"Say {{}}\n{{}}{END}", [f"{{}}{END}"],
    ),
    "question, answer": (
        lambda x: {"question": f"Say {x}", "answer": x}, "prompt-completion", f"Say {{}}\n{{}}{END}", [f"{{}}{END}"],
    ),
    "instruction, response": (
        lambda x: {"instruction": f"Say {x}", "response": x},
        "prompt-completion", f"Say {{}}\n{{}}{END}", [f"{{}}{END}"],
    ),
    "input, output": (
        lambda x: {"input": f"Say {x}: ", "output": x}, "prompt-completion", f"Say {{}}: {{}}{END}", [f"{{}}{END}"],
    ),
    "alpaca": (
        lambda x: {"instruction": f"Say {x}", "output": x},
        "alpaca",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\nSay {{}}\n\n### Response:\n{{}}{END}",
        [f"{{}}{END}"],
    ),
    "alpaca with input": (
        lambda x: {"instruction": "Say it", "input": x, "output": x},
        "alpaca",
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n"
        f"### Instruction:\nSay it\n\n### Input:\n{{}}\n\n### Response:\n{{}}{END}",
        [f"{{}}{END}"],
    ),
    "alpaca with an empty input": (
        lambda x: {"instruction": f"Say {x}", "input": "", "output": x},
        "alpaca",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\nSay {{}}\n\n### Response:\n{{}}{END}",
        [f"{{}}{END}"],
    ),
    "text": (lambda x: {"text": f"some {x}"}, "text", f"some {{}}{END}", [f"some {{}}{END}"]),
    "[INST] markup": (
        lambda x: {"text": f"<s>[INST] Hi {x} [/INST] Hello </s><s>[INST] Bye [/INST] Ciao {x} </s>"},
        "messages", CHAT, ANSWERS,
    ),
    "### Human markup": (
        lambda x: {"text": f"### Human: Hi {x}### Assistant: Hello### Human: Bye### Assistant: Ciao {x}"},
        "messages", CHAT, ANSWERS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_recognised_and_its_answers_are_what_is_trained(
    name: str, prepared: Prepare, tokenizer: "PreTrainedTokenizerBase"
) -> None:
    row, kind, whole, answers = FORMATS[name]
    found = prepared(four(row))
    assert found.facts["format"] == kind
    assert found.conversational == (kind == "messages")
    expected = {whole.replace("{}", x): [a.replace("{}", x) for a in answers] for x in "abcd"}
    assert dict(texts(t, tokenizer) for t in everything(found)) == expected


def test_an_answer_with_a_heading_in_it_stays_whole() -> None:
    found = split_markup("### Human: a### Assistant: one\n### Step 2: b")
    assert [m["role"] for m in found] == ["user", "assistant"]
    assert found[1]["content"].split() == ["one", "###", "Step", "2:", "b"]


def test_text_that_only_mentions_the_markup_is_plain_text(prepared: Prepare) -> None:
    assert prepared(four(lambda x: {"text": f"[INST] is a marker {x}"})).facts["format"] == "text"


def test_a_last_turn_without_an_answer_is_not_trained_on(
    prepared: Prepare, tokenizer: "PreTrainedTokenizerBase"
) -> None:
    turns = [("user", "q {}"), ("assistant", "a"), ("user", "and then?")]
    found = prepared(four(lambda x: {"messages": [{"role": r, "content": c.format(x)} for r, c in turns]}))
    assert texts(found.train[0], tokenizer)[1] == [f"a{END}"]
    assert "and then" not in texts(found.train[0], tokenizer)[0]


def test_the_chat_template_of_the_tokenizer_is_used(
    prepared: Prepare, tokenizer: "PreTrainedTokenizerBase", monkeypatch: pytest.MonkeyPatch
) -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    found = prepared(four(FORMATS["messages"][0]))
    whole, answers = texts(found.train[0], tokenizer)
    assert whole.startswith("<user>Hi ")
    assert answers[0] == "Hello</>"


def test_a_template_that_rewrites_earlier_turns_is_refused(
    prepared: Prepare, tokenizer: "PreTrainedTokenizerBase", monkeypatch: pytest.MonkeyPatch
) -> None:
    # some drop the reasoning of earlier answers; where an answer begins could then only be guessed
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(DataError, match="changes earlier turns"):
        prepared(four(FORMATS["messages"][0]))


def test_columns_can_be_named(prepared: Prepare, tokenizer: "PreTrainedTokenizerBase") -> None:
    rows = four(lambda x: {"q": f"Say {x} ", "a": x, "noise": 1})
    found = prepared(rows, columns={"prompt": "q", "completion": "a"})
    assert found.facts["columns"] == {"prompt": "q", "completion": "a"}
    assert sorted(texts(t, tokenizer)[1][0] for t in everything(found)) == [f"{x}{END}" for x in "abcd"]


def test_a_format_can_be_chosen_where_several_fit(prepared: Prepare) -> None:
    rows = four(lambda x: {"instruction": "i", "input": f"in {x}", "output": x})
    assert prepared(rows).facts["format"] == "alpaca"
    assert prepared(rows, format="prompt-completion").facts["columns"] == {"prompt": "input", "completion": "output"}


# splits


def pairs(n: int) -> Rows:
    return [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(n)]


def ids(rows: list[Tokens]) -> list[str]:
    return [r.example_id for r in rows]


def test_the_splits_have_the_sizes_asked_for_and_share_no_row(prepared: Prepare) -> None:
    found = prepared(pairs(20), validation_rows=3, test_rows=5)
    assert found.facts["rows"] == {"train": 12, "validation": 3, "test": 5}
    assert len(set(ids(everything(found)))) == 20


def test_the_split_depends_on_its_seed_alone(prepared: Prepare, tmp_path: Path) -> None:
    first = prepared(pairs(20), validation_rows=5, test_rows=5)
    again = prepared(pairs(20), validation_rows=5, test_rows=5, max_length=4095)
    other = prepared(pairs(20), validation_rows=5, test_rows=5, split_seed=1)
    assert ids(first.test) == ids(again.test)
    assert ids(first.validation) == ids(again.validation)
    assert ids(first.test) != ids(other.test)


def test_rows_with_the_same_prompt_are_in_the_same_split() -> None:
    prompts = [f"p{i // 3}" for i in range(30)]  # ten prompts, three rows each
    splits = split_rows(prompts, DataSource(path="x", validation_rows=3, test_rows=6))
    by_prompt = {p: {s for q, s in zip(prompts, splits, strict=True) if p == q} for p in prompts}
    assert all(len(found) == 1 for found in by_prompt.values())
    assert (splits.count("test"), splits.count("validation")) == (6, 3)


def test_a_sample_of_the_rows_is_drawn_with_the_split_seed(prepared: Prepare) -> None:
    found = prepared(pairs(20), rows=10)
    assert len(everything(found)) == 10
    assert [t.ids for t in everything(found)] == [t.ids for t in everything(prepared(pairs(20), rows=10))]


def test_duplicates_are_dropped_and_counted(prepared: Prepare) -> None:
    found = prepared([*pairs(4), *pairs(3), {"prompt": "p0", "completion": "another answer"}])
    assert found.facts["dropped"] == {"duplicate": 3}
    assert len(everything(found)) == 5


def test_long_rows_are_cut_and_rows_left_without_an_answer_dropped_and_counted(prepared: Prepare) -> None:
    # one token a byte and one for the end
    rows = [*pairs(4), {"prompt": "x" * 20, "completion": "y"}, {"prompt": "z", "completion": "y" * 20}]
    found = prepared(rows, max_length=10)
    assert found.facts["dropped"] == {"no answer within max_length": 1}
    assert found.facts["cut"] == 1
    assert max(len(t.ids) for t in everything(found)) == 10
    assert all(any(label != IGNORED for label in t.labels) for t in everything(found))


def test_rows_without_an_answer_are_dropped_and_counted(prepared: Prepare) -> None:
    question: dict[str, Any] = {"messages": [{"role": "user", "content": "anyone?"}]}
    found = prepared([*four(FORMATS["messages"][0]), question])
    assert found.facts["dropped"] == {"no answer": 1}


def test_when_no_row_is_left_the_reason_is_told(prepared: Prepare) -> None:
    with pytest.raises(DataError, match=r"no row can be trained on \(4 no answer within max_length\)"):
        prepared([{"prompt": "x" * 20 + str(i), "completion": "y"} for i in range(4)], max_length=10)


# mistakes


def test_too_few_rows_for_the_splits_are_refused_with_numbers_that_fit(prepared: Prepare) -> None:
    with pytest.raises(DataError, match=r"20 usable rows with 20 different prompts.* leave none") as caught:
        prepared(pairs(20), validation_rows=200, test_rows=200)
    assert caught.value.remedy == "controls.data.validation_rows=2 controls.data.test_rows=2"


def test_columns_that_fit_no_format_are_named(prepared: Prepare) -> None:
    with pytest.raises(DataError, match="no format fits its columns: frage, antwort") as caught:
        prepared(four(lambda x: {"frage": x, "antwort": x}))
    assert "controls.data.columns" in (caught.value.remedy or "")


def test_a_column_that_is_not_there_is_named_with_the_nearest(prepared: Prepare) -> None:
    with pytest.raises(DataError, match="no column 'frge' for 'prompt'; did you mean frage"):
        prepared(four(lambda x: {"frage": x, "antwort": x}), columns={"prompt": "frge", "completion": "antwort"})


def test_a_format_that_does_not_fit_is_answered_with_the_one_that_does() -> None:
    with pytest.raises(DataError, match='no column "messages" for format messages; columns: text') as caught:
        recognise(["text"], DataSource(path="x", format="messages"))
    assert caught.value.remedy == "controls.data.format=text"


def test_a_row_that_lacks_a_column_is_named(prepared: Prepare) -> None:
    with pytest.raises(DataError, match="row 3 has no column 'completion'"):
        prepared([*pairs(2), {"prompt": "x"}, *pairs(1)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n\n{"text": \n', r"a\.jsonl: line 3 is not JSON"),
        ("a.json", '[{"text": "x"}', r"a\.json: cannot be read as json"),
        ("a.json", '["x"]', r"a\.json: row 1 is str, a row is an object"),
        ("a.jsonl", "3\n", r"a\.jsonl: row 1 is int"),
        ("a.jsonl", "", r"a\.jsonl: has no rows"),
        ("a.csv", "text\n", r"a\.csv: has no rows"),
        ("a.parquet", "no parquet", r"a\.parquet: cannot be read as parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    prepared: Prepare, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        prepared(tmp_path / name)


def test_a_missing_file_and_an_unknown_suffix_are_refused(prepared: Prepare, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        prepared(tmp_path / "none.jsonl")
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(DataError, match=r"\.txt is not read; these are: \.jsonl, \.json, \.csv, \.parquet"):
        prepared(tmp_path / "rows.txt")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ("Hi", "messages is a list of turns, this is str"),
        ([{"role": "asistant", "content": "x"}], "a turn's role is 'asistant'; did you mean assistant"),
        (["Hi"], "a turn is an object"),
    ],
)
def test_a_conversation_that_is_none_is_refused(prepared: Prepare, turns: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        prepared([*four(FORMATS["messages"][0]), {"messages": turns}])
    assert "row 5" in str(caught.value)


# files


def write_csv(path: Path) -> None:
    path.write_text('\ufeffprompt,completion\n"p, 0","c\n0"\np1,c1\np2,c2\np3,c3\n', encoding="utf-8")


def write_json(path: Path) -> None:
    path.write_text(json.dumps(pairs(4), indent=1))


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(pairs(4)), path)


@pytest.mark.parametrize(
    ("name", "write"), [("a.csv", write_csv), ("a.json", write_json), ("a.parquet", write_parquet)]
)
def test_every_kind_of_file_is_read(
    prepared: Prepare, tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    assert len(everything(prepared(tmp_path / name))) == 4


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs {REAL}")
@pytest.mark.parametrize(
    ("name", "kind", "columns"),
    [
        ("guanaco-llama2-1k.parquet", "messages", {"text": "text"}),
        ("gsm8k_train.jsonl", "prompt-completion", {"prompt": "question", "completion": "answer"}),
        ("mmlu_zero_shot_val.json", "prompt-completion", {"prompt": "input", "completion": "output"}),
    ],
)
def test_real_data_sets_are_read_without_configuration(
    prepared: Prepare, tokenizer: "PreTrainedTokenizerBase", name: str, kind: str, columns: Mapping[str, str]
) -> None:
    found = prepared(REAL / name, rows=300, validation_rows=50, test_rows=50, max_length=8192)
    assert (found.facts["format"], found.facts["columns"]) == (kind, columns)
    assert found.facts["rows"]["test"] == 50
    assert sum(found.facts["rows"].values()) + sum(found.facts["dropped"].values()) == 300
    for row in found.test:
        whole, answers = texts(row, tokenizer)
        assert answers
        assert "[INST]" not in whole
        assert not any("### Human:" in answer for answer in answers)


# cache


def test_rows_are_tokenized_once(prepared: Prepare, tmp_path: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    first = prepared(pairs(4))
    (path,) = (tmp_path / "cache").glob("*.parquet")
    made = path.stat().st_mtime_ns
    assert prepared(pairs(4)) == first
    assert path.stat().st_mtime_ns == made
    # a copy under another name has the same content
    (tmp_path / "copy.jsonl").write_text((tmp_path / "rows.jsonl").read_text())
    prepared(tmp_path / "copy.jsonl")
    assert list((tmp_path / "cache").iterdir()) == [path]


@pytest.mark.parametrize("change", ["content", "max_length", "split_seed", "template"])
def test_the_cache_is_not_used_for_other_rows(
    prepared: Prepare,
    tmp_path: Path,
    change: str,
    tokenizer: "PreTrainedTokenizerBase",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = four(FORMATS["messages"][0])
    prepared(rows)
    if change == "content":
        prepared([*rows, FORMATS["messages"][0]("e")])
    elif change == "max_length":
        prepared(rows, max_length=100)
    elif change == "split_seed":
        prepared(rows, split_seed=7)
    else:
        monkeypatch.setattr(tokenizer, "chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}")
        prepared(rows)
    assert len(list((tmp_path / "cache").glob("*.parquet"))) == 2


def test_the_same_rows_have_the_same_digest_and_items_the_same_name(prepared: Prepare, tmp_path: Path) -> None:
    first = prepared(pairs(8))
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    again = prepared(pairs(8))
    assert again == first
    assert prepared([*pairs(7), {"prompt": "p7", "completion": "other"}]).facts["digest"] != first.facts["digest"]


@pytest.mark.parametrize(("answer", "text"), [(0, "0"), (False, "false"), (1.5, "1.5")])
def test_an_answer_that_is_zero_or_false_is_an_answer(prepared: Prepare, answer: object, text: str) -> None:
    rows = [{"prompt": f"q{i}", "completion": answer} for i in range(10)]
    found = prepared(rows, validation_rows=2, test_rows=2)
    assert found.facts["dropped"] == {}
    assert len(found.train[0].ids) > len(f"q0\n{text}") - 1


@pytest.mark.parametrize("answer", [None, ""])
def test_a_row_without_an_answer_is_dropped_and_counted(prepared: Prepare, answer: object) -> None:
    rows = [{"prompt": f"q{i}", "completion": "a"} for i in range(10)] + [{"prompt": "q", "completion": answer}]
    assert prepared(rows, validation_rows=2, test_rows=2).facts["dropped"] == {"no answer": 1}


def test_an_answer_that_is_an_object_is_refused_with_its_row(prepared: Prepare) -> None:
    rows = [{"prompt": f"q{i}", "completion": "a"} for i in range(9)] + [{"prompt": "q", "completion": {"x": 1}}]
    with pytest.raises(DataError, match="row 10: a text is expected, this is dict"):
        prepared(rows, validation_rows=2, test_rows=2)


def test_a_line_separator_inside_a_string_does_not_end_the_line(prepared: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "separated.jsonl"
    rows = [{"prompt": f"q{i}\u2028more", "completion": "a"} for i in range(10)]
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    assert sum(prepared(path, validation_rows=2, test_rows=2).facts["rows"].values()) == 10
