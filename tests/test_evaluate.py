"""The evaluation stage against scorers written here: lm-eval is right only as far as it is set up right."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from harness import tiny
from harness.data import IGNORED, Tokens
from harness.errors import DataError
from harness.evaluate import held_out_loss, majority, run_tasks
from harness.quantization.fp32 import plugin as fp32
from harness.record import Example, Score
from harness.spec import Controls, DataSource, Evaluation, ModelSource
from harness.tasks import tasks_of
from harness.worker import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ITEMS = 20


@pytest.fixture(scope="module")
def embedded() -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    model = fp32.load(
        str(tiny.MODEL), fp32.params(), revision=None, compute=torch.float32, device="cpu", remote_code=False
    )
    return model.eval(), load_tokenizer(str(tiny.MODEL), None, False)


def a_task(output_type: str) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """An embedded task of a kind: its name, its file and its first items."""
    for name in (*tiny.RETENTION_TASKS, *tiny.TARGET_TASKS):
        path = tiny.TASKS / f"{name}.yaml"
        task = yaml.safe_load(path.read_text())
        if task["output_type"] == output_type:
            lines = (path.parent / task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
            return name, task, [json.loads(line) for line in lines[:ITEMS]]
    raise LookupError(output_type)


def scored(
    embedded: "tuple[PreTrainedModel, PreTrainedTokenizerBase]", name: str, batch: int = 64
) -> tuple[Score, list[Example]]:
    model, tokenizer = embedded
    (score,), examples = run_tasks(
        model, tokenizer, {name: "target"}, Evaluation(limit=ITEMS, batch=batch), tokenizer.chat_template is not None
    )
    return score, examples


def rendered(question: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    if tokenizer.chat_template is None:
        return list(tokenizer(question)["input_ids"])
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.inference_mode()
def log_likelihood(model: "PreTrainedModel", before: list[int], answer: list[int]) -> float:
    logits = model(input_ids=torch.tensor([before + answer])).logits[0]
    each = torch.log_softmax(logits.float(), -1)[len(before) - 1 : -1]
    return float(each.gather(1, torch.tensor(answer)[:, None]).sum())


@torch.inference_mode()
def greedy(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", ids: list[int], most: int) -> str:
    written: list[int] = []
    for _ in range(most):
        following = int(model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax())
        if following == tokenizer.eos_token_id:
            break
        written.append(following)
    return str(tokenizer.decode(written))


def test_a_choice_is_the_likeliest_after_the_rendered_question(
    embedded: "tuple[PreTrainedModel, PreTrainedTokenizerBase]",
) -> None:
    # lm-eval adds a space between question and choice unless told not to; the base then scores below chance
    model, tokenizer = embedded
    name, _, items = a_task("multiple_choice")
    score, examples = scored(embedded, name)
    assert len(examples) == ITEMS
    for item, example in zip(items, examples, strict=True):
        before = rendered(item["question"], tokenizer)
        answers = [tokenizer(c, add_special_tokens=False)["input_ids"] for c in item["choices"]]
        likelihoods = [log_likelihood(model, before, answer) for answer in answers]
        best = item["choices"][max(range(len(answers)), key=lambda i: likelihoods[i])]
        assert (example.prediction, example.target) == (best, item["answer"]), item["question"]
        assert example.score == (best == item["answer"])
    assert score.value == pytest.approx(sum(e.score for e in examples) / ITEMS)
    assert (score.metric, score.items, score.role, score.higher_is_better) == ("acc", ITEMS, "target", True)
    assert score.majority == majority([item["answer"] for item in items])


def test_an_answer_is_what_greedy_decoding_writes(
    embedded: "tuple[PreTrainedModel, PreTrainedTokenizerBase]",
) -> None:
    model, tokenizer = embedded
    name, task, items = a_task("generate_until")
    most = task["generation_kwargs"]["max_gen_toks"]
    score, examples = scored(embedded, name)
    assert len(examples) == ITEMS
    for item, example in zip(items, examples, strict=True):
        expected = greedy(model, tokenizer, rendered(item["question"], tokenizer), most)
        assert (example.prediction or "").strip() == expected.strip(), item["question"]
        assert example.target == item["answer"]
        assert example.score == (example.prediction == item["answer"])
    assert score.value == pytest.approx(sum(e.score for e in examples) / ITEMS)
    assert score.majority == majority([item["answer"] for item in items])


def test_scores_do_not_depend_on_the_batch(embedded: "tuple[PreTrainedModel, PreTrainedTokenizerBase]") -> None:
    name, _, _ = a_task("generate_until")
    assert scored(embedded, name, batch=3) == scored(embedded, name, batch=64)


def test_the_same_item_has_the_same_name_in_every_run(
    embedded: "tuple[PreTrainedModel, PreTrainedTokenizerBase]",
) -> None:
    name, _, _ = a_task("multiple_choice")
    ids = [e.example_id for e in scored(embedded, name)[1]]
    assert ids == [e.example_id for e in scored(embedded, name)[1]]
    assert len(set(ids)) == ITEMS


def test_a_task_of_ones_own_is_run_with_its_data_beside_it(
    embedded: "tuple[PreTrainedModel, PreTrainedTokenizerBase]", tmp_path: Path
) -> None:
    (tmp_path / "items.jsonl").write_text('{"q": "Say a", "a": "a"}\n{"q": "Say b", "a": "b"}\n')
    task = {
        "task": "mine", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": ["a", "b"],
        "doc_to_target": "{{['a', 'b'].index(a)}}", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(task))
    model, tokenizer = embedded
    scores, examples = run_tasks(model, tokenizer, {str(path): "retention"}, Evaluation(), False)
    assert [(s.task, s.metric, s.items, s.role) for s in scores] == [("mine", "acc", 2, "retention")]
    assert [e.target for e in examples] == ["a", "b"]


def test_an_unknown_task_is_named(embedded: "tuple[PreTrainedModel, PreTrainedTokenizerBase]", tmp_path: Path) -> None:
    model, tokenizer = embedded
    with pytest.raises(DataError, match=r"none\.yaml: cannot be read"):
        run_tasks(model, tokenizer, {str(tmp_path / "none.yaml"): "target"}, Evaluation(), False)


def test_no_tasks_are_no_scores(embedded: "tuple[PreTrainedModel, PreTrainedTokenizerBase]") -> None:
    assert run_tasks(*embedded, {}, Evaluation(), False) == ([], [])


def test_the_tasks_belong_to_the_data_and_to_the_model() -> None:
    model, data = ModelSource(id="tiny"), DataSource(path="tiny")
    both = tasks_of(Controls(model=model, data=data))
    assert both == dict.fromkeys(tiny.RETENTION_TASKS, "retention") | dict.fromkeys(tiny.TARGET_TASKS, "target")
    other = Controls(model=model, data=DataSource(path="mine.jsonl"), evaluate=Evaluation(tasks=["gsm8k"]))
    assert tasks_of(other) == dict.fromkeys(tiny.RETENTION_TASKS, "retention") | {"gsm8k": "target"}
    assert tasks_of(Controls(model=ModelSource(id="a/b"), data=DataSource(path="mine.jsonl"))) == {}


def test_the_majority_is_what_one_answer_to_everything_scores() -> None:
    assert majority(["a", "b", "a", "c"]) == 0.5
    assert majority([]) is None


# held-out loss

ROWS = [
    Tokens("r0", [5, 6, 7, 8], [IGNORED, IGNORED, 7, 8]),
    Tokens("r1", [9, 10, 11, 12, 13, 14, 15], [IGNORED, 10, 11, IGNORED, IGNORED, 14, 15]),
    Tokens("r2", [20, 21], [IGNORED, 21]),
    Tokens("r3", [30, 31, 32], [30, 31, 32]),  # plain text: the first token has nothing before it to be told from
]


@pytest.fixture(scope="module")
def random_model(model_folder: Path) -> "PreTrainedModel":
    return fp32.load(
        str(model_folder), fp32.params(), revision=None, compute=torch.float32, device="cpu", remote_code=False
    )


@torch.inference_mode()
def by_hand(model: "PreTrainedModel", row: Tokens) -> float:
    """Mean over answer tokens of minus the log-probability given all before it, one token at a time."""
    each = []
    for i in range(1, len(row.ids)):
        if row.labels[i] != IGNORED:
            logits = model(input_ids=torch.tensor([row.ids[:i]])).logits[0, -1].float()
            each.append(-float(torch.log_softmax(logits, -1)[row.ids[i]]))
    return sum(each) / len(each)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_loss_is_the_cross_entropy_of_the_answers_in_any_batch(random_model: "PreTrainedModel", batch: int) -> None:
    (score,), examples = held_out_loss(random_model, ROWS, "test_loss", batch, pad=0)
    expected = [by_hand(random_model, row) for row in ROWS]
    assert [e.example_id for e in examples] == ["r0", "r1", "r2", "r3"]
    assert [e.score for e in examples] == pytest.approx(expected, abs=1e-4)
    # the mean of rows, so that every item weighs the same in a comparison of items
    assert score.value == pytest.approx(sum(expected) / 4, abs=1e-4)
    assert (score.role, score.higher_is_better, score.items) == ("loss", False, 4)


def test_dropout_is_off_when_the_loss_is_taken(random_model: "PreTrainedModel") -> None:
    random_model.train()
    held_out_loss(random_model, ROWS, "test_loss", 64, pad=0)
    assert not random_model.training
