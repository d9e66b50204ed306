"""The commands that read results: `show`, `compare` and `sample`, on a store made of records."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeRecord, MakeSpec

from harness.cli import harness, run
from harness.record import Example, Record, Score
from harness.spec import StudySpec
from harness.store import Store, StudyStore

Fill = Callable[..., StudyStore]
Answer = tuple[int, str, str]
Ask = Callable[..., Answer]
ITEMS = 60
TASK = "sums/exact_match"


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ask:
    """Run a command on the store; its exit code, what it printed and what it said on the side."""

    def call(*arguments: str) -> Answer:
        capsys.readouterr()  # what the test itself printed
        with pytest.raises(SystemExit) as caught:
            run(harness, [*arguments, "--store", str(tmp_path)])
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return call


@pytest.fixture
def fill(tmp_path: Path, make_spec: MakeSpec, make_record: MakeRecord) -> Fill:
    """A study of two arms: each is tuned at two learning rates and judged on two seeds.

    `right` is the share of items that each arm gets right, `study` changes the study.
    """

    def make(right: dict[str, float] | None = None, **study: Any) -> StudyStore:
        spec = make_spec(objective={"margin": 0.02, **study.pop("objective", {})}, **study)
        store = Store(tmp_path).open(spec)
        draw = np.random.default_rng(0)
        write = writer(store, spec, make_record)
        write("zero-shot", "baseline", 0, 5.0, draw.random(ITEMS) < 0.1, method="none", params={})
        for arm, share in (right or {"full": 0.9, "lora": 0.3}).items():
            for rate, loss in ((1e-3, 0.4), (1e-2, 0.5)):
                write(arm, "search", 0, loss, None, params={"learning_rate": rate})
            for seed in (101, 102):
                write(arm, "confirm", seed, 0.4, draw.random(ITEMS) < share, params={"learning_rate": 1e-3})
        return store

    return make


def writer(store: StudyStore, spec: StudySpec, make_record: MakeRecord) -> Callable[..., Record]:
    def write(arm: str, phase: str, seed: int, loss: float, answers: Any, status: str = "done", **trial: Any) -> Record:
        fields = {"study": spec.name, "arm": arm, "phase": phase, "seed": seed, "controls": spec.controls, **trial}
        scores = [loss_score("validation_loss", loss)]
        examples = []
        if answers is not None:
            scores += [loss_score("test_loss", loss), task_score(float(np.mean(answers)))]
            examples = [
                Example(task="sums", metric="exact_match", example_id=f"{i}", score=float(a))
                for i, a in enumerate(answers)
            ]
            examples += [Example(task="test_loss", metric="loss", example_id=f"t{i}", score=loss) for i in range(3)]
        record = make_record(
            trial=fields, question_id=spec.question_id, status=status, scores=scores if status == "done" else [],
            examples=examples,
        )  # fmt: skip
        store.write(record)
        return record

    return write


def loss_score(name: str, value: float) -> Score:
    return Score(task=name, metric="loss", value=value, items=3, role="loss", higher_is_better=False)


def task_score(value: float) -> Score:
    return Score(
        task="sums", metric="exact_match", value=value, items=ITEMS, role="target", higher_is_better=True, majority=0.2
    )


# show


def test_an_empty_store_says_what_to_do(ask: Ask) -> None:
    code, out, _ = ask("show")
    assert code == 0
    assert "harness study tiny-methods" in out
    assert json.loads(ask("show", "--json")[1]) == []


def test_the_studies_are_listed(ask: Ask, fill: Fill) -> None:
    fill(question="Is it?")
    assert json.loads(ask("show", "--json")[1]) == [{"study": "s", "runs": 9, "question": "Is it?", "origin": None}]
    assert "Is it?" in ask("show")[1]


def test_a_study_is_shown_with_its_arms_and_one_sentence(ask: Ask, fill: Fill) -> None:
    fill()
    code, out, err = ask("show", "s")
    assert (code, err) == (0, "")
    assert "shown to be worse than full" in out
    assert "always the most frequent answer: sums/exact_match 0.200" in out
    assert "zero-shot" in out


def test_what_is_shown_as_json_is_what_the_records_hold(ask: Ask, fill: Fill) -> None:
    fill()
    found = json.loads(ask("show", "s", "--json")[1])
    assert (found["metric"], found["margin"], found["majority"]) == (TASK, 0.02, 0.2)
    full, lora = found["arms"]
    assert (full["arm"], full["search_trials"], full["learning_rate"]) == ("full", 2, 1e-3)
    assert full["score"]["seeds"] == 2
    assert full["score"]["mean"] > 0.8 > 0.5 > lora["score"]["mean"]
    assert full["statuses"] == {"done": 4}
    # 1e-3 is the lower of the two rates that were tried
    assert full["at_edge"]
    assert found["comparison"]["verdicts"][0]["label"] == "worse"


def test_every_run_is_shown_whatever_became_of_it(
    ask: Ask, fill: Fill, make_record: MakeRecord, make_spec: MakeSpec
) -> None:
    store = fill()
    write = writer(store, store.spec(), make_record)
    write("lora", "search", 0, 0, None, status="out_of_memory", params={"learning_rate": 5e-3})
    rows = json.loads(ask("show", "s", "--runs", "--json")[1])
    assert len(rows) == 10
    assert {r["status"] for r in rows} == {"done", "out of memory"}
    code, out, _ = ask("show", "s", "--runs")
    assert code == 0
    assert out.count("out of memory") == 1
    assert "lora: 1 run out of memory" in ask("show", "s")[1]


def test_a_study_without_confirmed_runs_claims_nothing(
    ask: Ask, tmp_path: Path, make_spec: MakeSpec, make_record: MakeRecord
) -> None:
    spec = make_spec()
    store = Store(tmp_path).open(spec)
    writer(store, spec, make_record)("full", "search", 0, 0.4, None, params={"learning_rate": 1e-3})
    code, out, _ = ask("show", "s")
    assert code == 0
    assert "Not enough data" in out
    assert json.loads(ask("show", "s", "--json")[1])["comparison"] is None


def test_an_unknown_study_is_answered_with_the_nearest(ask: Ask, fill: Fill) -> None:
    fill(name="tiny-methods")
    code, out, err = ask("show", "tiny-metods")
    assert (code, out) == (2, "")
    assert "did you mean tiny-methods?" in err
    code, out, err = ask("show", "tiny-metods", "--json")
    assert json.loads(out)["exit_code"] == 2
    assert err == ""


def test_an_arm_that_was_tuned_further_is_judged_by_what_is_best_now(
    ask: Ask, fill: Fill, make_record: MakeRecord
) -> None:
    # a third trial finds a better rate, which is confirmed on the same seeds: the old runs stay, and are not judged
    store = fill({"full": 0.5, "lora": 0.3})
    write = writer(store, store.spec(), make_record)
    write("lora", "search", 0, 0.1, None, params={"learning_rate": 3e-3})
    write("full", "search", 0, 0.45, None, params={"learning_rate": 3e-3})  # budgets stay equal
    for seed in (101, 102):
        write("lora", "confirm", seed, 0.1, np.ones(ITEMS), params={"learning_rate": 3e-3})
    found = json.loads(ask("show", "s", "--json")[1])
    lora = found["arms"][1]
    assert (lora["learning_rate"], lora["score"]["mean"], lora["score"]["seeds"]) == (3e-3, 1.0, 2)
    assert not lora["at_edge"]
    assert found["comparison"]["verdicts"][0]["label"] == "better"
    code, out, _ = ask("compare", "lora", "full", "--json")
    assert code == 0
    assert json.loads(out)["metrics"][0]["means"]["lora"] == 1.0


# compare


def test_a_difference_that_is_shown_ends_with_0(ask: Ask, fill: Fill) -> None:
    fill()
    code, out, err = ask("compare", "full", "lora")
    assert (code, err) == (0, "")
    assert "better" in out
    assert "worse" in ask("compare", "lora", "full")[1]


def test_a_difference_that_is_not_shown_ends_with_5(ask: Ask, fill: Fill) -> None:
    fill({"full": 0.5, "lora": 0.5})
    code, out, _ = ask("compare", "full", "lora")
    assert code == 5
    assert "not shown" in out


def test_arms_without_confirmed_runs_end_with_5(ask: Ask, tmp_path: Path, make_spec: MakeSpec) -> None:
    Store(tmp_path).open(make_spec())
    code, out, _ = ask("compare", "full", "lora")
    assert code == 5
    assert "Not enough data" in out
    assert json.loads(ask("compare", "full", "lora", "--json")[1])["metrics"] == []


def test_the_margin_can_be_given(ask: Ask, fill: Fill) -> None:
    fill()
    code, out, _ = ask("compare", "full", "lora", "--margin", "0.99", "--json")
    assert code == 0
    assert json.loads(out)["metrics"][0]["verdict"] == "equivalent"


def test_a_comparison_as_json_adds_up(ask: Ask, fill: Fill) -> None:
    fill()
    found = json.loads(ask("compare", "full", "lora", "--json")[1])
    first, loss = found["metrics"][:2]
    assert (first["metric"], loss["metric"], loss["higher_is_better"]) == (TASK, "test_loss", False)
    assert first["difference"] == pytest.approx(first["means"]["full"] - first["means"]["lora"])
    assert first["low"] < first["difference"] < first["high"]
    assert sum(first["flips"].values()) == pytest.approx(1)
    assert first["flips"]["only full"] - first["flips"]["only lora"] == pytest.approx(first["difference"])
    assert list(first["per_seed"]) == ["101", "102"]
    assert loss["flips"] is None
    assert found["differs_in"] == {"method": ["full", "lora"]}
    assert found["cost"]["full"]["peak_bytes"] == 720


def test_an_unknown_arm_is_answered_with_the_nearest(ask: Ask, fill: Fill) -> None:
    fill()
    code, _, err = ask("compare", "full", "lorra")
    assert code == 2
    assert "no arm 'lorra' in s; did you mean lora?" in err


def test_of_several_studies_one_has_to_be_named(ask: Ask, fill: Fill) -> None:
    fill()
    fill(name="other")
    code, _, err = ask("compare", "full", "lora")
    assert code == 2
    assert "other, s" in err
    assert "--study" in err
    assert ask("compare", "full", "lora", "--study", "other")[0] == 0


# sample


def test_an_arm_of_which_no_model_is_kept_cannot_be_asked(ask: Ask, fill: Fill) -> None:
    fill()
    code, _, err = ask("sample", "lora", "--prompt", "1 + 1")
    assert code == 2
    assert "no model of lora is kept" in err
    assert ask("sample", "lorra", "--prompt", "1 + 1")[0] == 2


def test_base_and_tuned_model_answer_side_by_side(
    ask: Ask, tmp_path: Path, make_spec: MakeSpec, model_folder: Path
) -> None:
    from harness import worker
    from harness.interfaces import Job
    from harness.trial import Trial

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {i}: ", "completion": "aaaaaa"}) + "\n" for i in range(24)))
    controls = {
        "model": {"id": str(model_folder)},
        "data": {"path": str(rows), "validation_rows": 2, "test_rows": 2},
        "train": {"max_steps": 40, "batch": 4, "max_length": 64, "warmup_ratio": 0},
        "device": "cpu",
    }
    spec = make_spec(controls=controls)
    store = Store(tmp_path).open(spec)
    trial = Trial(
        study="s", arm="lora", phase="confirm", seed=101, method="lora", quantization="nf4",
        params={"learning_rate": 2e-2, "rank": 8}, controls=spec.controls, model_digest="m", data_digest="d",
    )  # fmt: skip
    record = worker.run(Job(trial=trial, question_id=spec.question_id, folder=store.folder), lambda event: None)
    assert record.status == "done", record.detail
    code, out, _ = ask("sample", "lora", "--prompt", "say 30: ", "--max-new-tokens", "4", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["run"], found["tuned"]) == (record.trial_id, "aaaa")
    assert found["base"] != "aaaa"
    assert ask("sample", "lora", "--prompt", "x", "--seed", "7")[0] == 2
