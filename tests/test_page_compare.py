"""The page that sets two configurations against each other: what it shows of made-up studies, checkable by eye."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Open
from stores import ARMS, generate

from harness import pairs, questions, tiny
from harness.decision import make
from harness.pairs import Metric, Pair
from harness.recommend import Limits
from harness.spec import Controls, DataSource, Evaluation, ModelSource
from harness.store import StudyStore
from harness.summary import gather, summarise

pytest.importorskip("streamlit", reason="the dashboard is an extra")


from dashboard import shared
from dashboard.views import compare

TWO = {name: ARMS[name] for name in ("full", "qlora-nf4")}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    """Two arms of five seeds, one of them much worse."""
    return generate(tmp_path_factory.mktemp("store"), "lab", 20, arms=TWO, items=200)


def pair(**changes: Any) -> Pair:
    """`a` against `b` on a share of right answers and on a loss."""
    share: dict[str, Any] = {
        "metric": "sums/exact_match", "higher_is_better": True, "means": {"a": 0.5, "b": 0.6}, "difference": -0.1,
        "low": -0.15, "high": -0.05, "verdict": "worse", "reason": None, "naive": "worse", "seeds": 2, "items": 10,
        "per_seed": {"1": -0.2, "2": 0.0},
        "flips": {"both right": 0.4, "only a": 0.1, "only b": 0.2, "both wrong": 0.3},
    }  # fmt: skip
    loss = share | {"metric": "test_loss", "higher_is_better": False, "difference": 0.02, "low": -0.01, "high": 0.05,
                    "verdict": "not shown", "flips": None, "per_seed": {"1": 0.02}}  # fmt: skip
    fields: dict[str, Any] = {
        "study": "s", "a": "a", "b": "b", "margin": 0.02, "exploratory": False,
        "metrics": [Metric(**share), Metric(**loss)], "cost": {}, "differs_in": {}, "sentence": "",
    }  # fmt: skip
    return Pair(**fields | changes)


def answers() -> pd.DataFrame:
    """Item 0 comes out right for b alone in both seeds, item 10 for a alone in one; item 2 is alike."""
    rows = [
        ("0-x", 1, "t0", 0.0, "wrong", 1.0, "t0"),
        ("0-x", 2, "t0", 0.0, "none", 1.0, "t0"),
        ("10-y", 1, "t1", 1.0, "t1", 0.0, "no"),
        ("10-y", 2, "t1", 1.0, "t1", 1.0, "t1"),
        ("2-z", 1, "t2", 1.0, "t2", 1.0, "t2"),
        ("2-z", 2, "t2", 0.0, "?", 0.0, "?"),
    ]
    return pd.DataFrame(rows, columns=["example_id", "seed", "target", "score_a", "answer_a", "score_b", "answer_b"])


# what is drawn


def test_shares_and_losses_stand_on_scales_of_their_own() -> None:
    frame = compare.forest_frame(pair())
    assert list(frame["panel"]) == ["percent points, more is better", "nats per token, less is better"]
    assert list(frame["difference"]) == [-10.0, 0.02]  # points, nats
    assert list(frame["margin"]) == [2.0, 0.0]  # none was declared for the loss
    assert [p.title for p in compare.forest(pair())] == [f"a minus b, in {p}" for p in frame["panel"]]


def test_every_seed_is_a_dot() -> None:
    assert list(compare.seed_frame(pair())["difference"]) == [-20.0, 0.0, 0.02]


def test_a_metric_without_an_interval_is_listed_and_not_drawn() -> None:
    one = pair()
    bare = Metric(**{**vars(one.metrics[0]), "difference": None, "low": None, "high": None, "reason": "one seed of a"})
    without = pair(metrics=[bare])
    assert compare.forest(without) == []
    assert compare.bounded(bare) == "no interval: one seed of a"
    assert "item by item" not in compare.basis(without)


def test_the_four_outcomes_are_said_in_numbers() -> None:
    assert compare.flips_said(pair(), "sums/exact_match") == (
        "Of 20 answers (10 items, 2 seeds): both right 40.0 %, only a right 10.0 %, only b right 20.0 %, "
        "both wrong 30.0 %."
    )
    bars = compare.flips_chart(pair(), "sums/exact_match").to_dict()
    (rows,) = bars["datasets"].values()
    assert [(r["outcome"], round(r["to"])) for r in rows] == [
        ("both right", 40), ("only a", 50), ("only b", 70), ("both wrong", 100),
    ]  # fmt: skip
    assert compare.flipping(pair()) == ["sums/exact_match"]


# examples


def test_what_flipped_in_most_seeds_comes_first() -> None:
    found = compare.flipped(answers(), {"0-x": "What?"})
    assert list(found["example_id"]) == ["0-x", "0-x", "10-y"]
    assert list(found["side"]) == ["b", "b", "a"]
    assert list(found["alike"]) == [2, 2, 1]
    table = compare.examples_table(compare.items(found), pair())
    assert list(table["In"]) == ["2 of 2 seeds", "1 of 2 seeds"]
    assert list(table["Question"]) == ["What?", "not known"]
    assert list(table["a answered"]) == ["wrong", "t1"]
    assert list(table["Seeds"]) == ["1, 2", "1"]


def test_examples_are_found_by_side_and_by_words() -> None:
    found = compare.flipped(answers(), {"0-x": "What?"})
    assert list(compare.searched(found, "a", "")["example_id"]) == ["10-y"]
    assert list(compare.searched(found, None, "NONE")["seed"]) == [2]
    assert list(compare.searched(found, None, "what?")["seed"]) == [1, 2]
    assert compare.searched(found, None, "(").empty  # words, not a pattern


def test_without_any_question_its_number_is_named_and_the_reason_said() -> None:
    found = compare.flipped(answers(), {})
    shown = compare.items(found)
    assert list(compare.examples_table(shown, pair())["Question"]) == ["item 0", "item 10"]
    assert compare.counted(found, shown, found).endswith(compare.UNKNOWN)
    assert compare.counted(found, shown, found).startswith("3 answers to 2 items flipped.")


def test_answers_of_both_arms_stand_side_by_side(study: StudyStore) -> None:
    evidence = gather(study)
    found = pairs.answers(study, evidence, evidence.metric, "qlora-nf4", "full")
    assert len(found) == 200 * 5
    assert (found["answer_a"] == found["target"]).eq(found["score_a"] == 1).all()
    shares = pairs.make(study, evidence, summarise(study, evidence), "qlora-nf4", "full").metrics[0].flips
    assert shares is not None
    only_full = ((found["score_a"] == 0) & (found["score_b"] == 1)).mean()
    assert shares["only full"] == pytest.approx(only_full)


# questions


def test_the_questions_of_an_embedded_task_are_known_by_the_hash_of_their_content() -> None:
    asked = questions.texts(Controls(model=ModelSource(id="tiny"), data=DataSource(path="tiny")), "tiny_sort_down")
    first = json.loads((tiny.DATA / "tiny_sort_down.jsonl").read_text().splitlines()[0])
    assert asked["0-543e9fb1"] == first["question"]  # the id that lm-eval's own hash gave in a real study


def test_the_questions_of_an_own_task_are_rendered_and_a_changed_file_gives_none(tmp_path: Path) -> None:
    row = {"a": 1, "b": 2}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    task = tmp_path / "mine.yaml"
    task.write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        'doc_to_text: "{{a}} + {{b}} ="\n'
    )
    controls = Controls(
        model=ModelSource(id="x/y"), data=DataSource(path="x/z"), evaluate=Evaluation(tasks=[str(task)])
    )
    known = questions.example_id(0, row)
    assert questions.texts(controls, "mine") == {known: "1 + 2 ="}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"b": 3}) + "\n")
    assert known not in questions.texts(controls, "mine")
    assert questions.texts(controls, "gsm8k") == {}  # of the hub


# settings and cost


def test_only_settings_that_differ_are_listed_unless_all_are_asked_for(study: StudyStore) -> None:
    evidence = gather(study)
    summary = summarise(study, evidence)
    two = pairs.make(study, evidence, summary, "qlora-nf4", "full")
    few = compare.settings_table(two, evidence, summary, everything=False).set_index("Setting")
    assert few.loc["Quantization"].to_list() == ["nf4", "fp32"]
    assert few.loc["Rank"].to_list() == ["4", "-"]
    assert "Train: max steps" not in few.index
    everything = compare.settings_table(two, evidence, summary, everything=True).set_index("Setting")
    assert everything.loc["Train: max steps"].to_list() == ["30", "30"]


def test_costs_have_a_ratio_and_what_is_not_known_is_said(study: StudyStore) -> None:
    evidence = gather(study)
    summary = summarise(study, evidence)
    two = pairs.make(study, evidence, summary, "qlora-nf4", "full")
    found = compare.costs(two, summary, make(study, evidence, summary, Limits())).set_index("What")
    rows = {r.arm: r for r in summary.arms}
    ratio = rows["qlora-nf4"].peak_bytes / rows["full"].peak_bytes  # type: ignore[operator]
    assert found.loc["Peak memory of training", "qlora-nf4 against full"] == f"{ratio:.2f} ×"
    assert found.loc["Energy of training"].to_list() == ["not known", "not known", "-"]  # a CPU has no meter


# the page


def test_the_page_says_the_verdict_of_the_command(study: StudyStore, opened: Open) -> None:
    at = opened(study.folder.parent, "compare")
    assert not at.exception
    evidence = gather(study)
    found = pairs.make(study, evidence, summarise(study, evidence), "qlora-nf4", "full")
    assert found.metrics[0].verdict == "worse"
    assert f"**{shared.plain(found.sentence)}**" in [m.value for m in at.markdown]
    assert (at.selectbox(key="a").value, at.selectbox(key="b").value) == ("qlora-nf4", "full")


def test_swapping_turns_the_difference_round(study: StudyStore, opened: Open) -> None:
    at = opened(study.folder.parent, "compare")
    at.button[0].click().run()
    assert not at.exception
    assert (at.selectbox(key="a").value, at.selectbox(key="b").value) == ("full", "qlora-nf4")
    assert any("full" in m.value and shared.plain("better than qlora-nf4") in m.value for m in at.markdown)


def test_a_configuration_against_itself_is_not_compared(study: StudyStore, opened: Open) -> None:
    at = opened(study.folder.parent, "compare")
    at.selectbox(key="a").set_value("full").run()
    assert not at.exception
    assert "Both are full: choose two different ones." in [t.value for t in at.text]


def test_before_any_confirmed_run_the_page_says_what_brings_one(tmp_path: Path, opened: Open) -> None:
    generate(tmp_path, "young", 4, arms=TWO)
    at = opened(tmp_path, "compare")
    assert not at.exception
    assert "qlora-nf4 and full have no confirmed run yet that could be judged." in [t.value for t in at.text]
    folder = tmp_path / "young"
    assert f"harness study {folder}/study.yaml --store {tmp_path}" in [c.value for c in at.code]
