"""What may be judged, what is recommended under limits, and what would settle an open question."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeRecord, MakeSpec
from test_cli_results import writer

from harness.compare import look_alpha
from harness.errors import SpecError
from harness.protocol import changes, declare
from harness.recommend import Limits, break_even, recommend
from harness.store import Store, StudyStore
from harness.summary import failure_rate, gather, settled, summarise

SEEDS = (101, 102, 103)
Fill = Callable[..., StudyStore]


@pytest.fixture
def fill(tmp_path: Path, make_spec: MakeSpec, make_record: MakeRecord) -> Fill:
    """A study of `full` and `lora` on three seeds; `right` is the share of items an arm gets right on every seed."""

    def make(right: dict[str, float], seeds: dict[str, int] | None = None, **study: Any) -> StudyStore:
        sections = {"objective": {"margin": 0.05}, "confirm": {"seeds": list(SEEDS)}} | study
        spec = make_spec(**sections)
        store = Store(tmp_path).open(spec)
        write = writer(store, spec, make_record)
        draw = np.random.default_rng(0)
        write("zero-shot", "baseline", 0, 5.0, draw.random(400) < 0.1, method="none", params={})
        for arm, share in right.items():
            for rate, loss in ((1e-3, 0.4), (1e-2, 0.5)):
                write(arm, "search", 0, loss, None, params={"learning_rate": rate})
            for seed in spec.confirm.seeds[: (seeds or {}).get(arm, 3)]:
                write(arm, "confirm", seed, 0.4, draw.random(400) < share, params={"learning_rate": 1e-3})
        return store

    return make


def verdicts(store: StudyStore) -> dict[str, tuple[str, str | None]]:
    comparison = summarise(store).comparison
    assert comparison is not None
    return {v.arm: (v.label, v.reason) for v in comparison.verdicts}


# what may be judged


def test_there_is_no_verdict_between_declared_looks(fill: Fill) -> None:
    store = fill({"full": 0.9, "lora": 0.3}, {"full": 2, "lora": 2})
    label, reason = verdicts(store)["lora"]
    assert label == "not enough data"
    assert reason is not None
    assert "2 confirmed seeds per arm; the verdict is looked at after 3" in reason


def test_a_look_that_was_not_declared_is_refused(fill: Fill, make_spec: MakeSpec, tmp_path: Path) -> None:
    fill({"full": 0.9, "lora": 0.3})
    longer = {"objective": {"margin": 0.05}, "confirm": {"seeds": [*SEEDS, 104, 105]}}
    store = fill({"full": 0.9, "lora": 0.3}, {"full": 5, "lora": 5}, **longer)
    label, reason = verdicts(store)["lora"]
    assert label == "not enough data"
    assert reason is not None
    assert "a look at 5 seeds was not declared (declared: 3)" in reason
    assert any("exploratory" in c and "looks was [3] and is [5]" in c for c in summarise(store).caveats)


def test_declared_looks_share_the_error_rate(fill: Fill) -> None:
    looks = {"confirm": {"seeds": [*SEEDS, 104, 105, 106, 107, 108], "looks": [3, 5, 8]}, "objective": {"margin": 0.05}}
    store = fill({"full": 0.9, "lora": 0.3}, **looks)
    evidence = gather(store)
    assert (evidence.seeds, evidence.alpha) == (3, look_alpha(0.05, (3, 5, 8)))
    assert evidence.alpha < 0.05 / 2, "three looks at 5 % would err twice as often"
    assert verdicts(store)["lora"] == ("worse", None)
    assert settled(gather(store)), "the first look settles it, so the study may stop"


def test_unequal_tuning_budgets_are_named_and_not_compared(fill: Fill, make_record: MakeRecord) -> None:
    store = fill({"full": 0.9, "lora": 0.3})
    write = writer(store, store.spec(), make_record)
    write("lora", "search", 0, 0.6, None, params={"learning_rate": 3e-3})
    label, reason = verdicts(store)["lora"]
    assert (label, reason) == ("not enough data", "tuning budgets differ: full 2, lora 3")


def test_runs_of_different_versions_are_not_compared(fill: Fill, make_record: MakeRecord) -> None:
    store = fill({"full": 0.9, "lora": 0.3})
    odd = next(r for r in store.records() if r.phase == "confirm" and r.trial.arm == "lora")
    store.write(odd.model_copy(update={"environment": {"packages": {"torch": "1.0"}}, "attempt": 2}))
    label, reason = verdicts(store)["lora"]
    assert label == "not enough data"
    assert reason is not None
    assert "different versions" in reason


def test_a_run_worse_than_the_untrained_base_is_counted_and_not_averaged(fill: Fill, make_record: MakeRecord) -> None:
    store = fill({"full": 0.9, "lora": 0.3})
    write = writer(store, store.spec(), make_record)
    write("lora", "confirm", 103, 9.0, np.zeros(400), params={"learning_rate": 1e-3})  # the base has 5.0
    found = {row.arm: row for row in summarise(store).arms}["lora"]
    assert (found.failed, len(found.run_seconds)) == (1, 2)
    assert found.score is not None
    assert found.score.mean > 0.2, "a zero would have pulled it down"
    assert any("ended worse than the untrained base" in c for c in summarise(store).caveats)


def test_failures_have_an_exact_interval() -> None:
    # 0 of 3: the upper bound p solves (1 - p)^3 = 0.025, so p = 1 - 0.025^(1/3)
    assert failure_rate(0, 3) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 3)))
    assert failure_rate(0, 0) is None


def test_the_declaration_stays_what_it_was(make_spec: MakeSpec) -> None:
    before = declare(make_spec(objective={"margin": 0.05}))
    assert changes(before, make_spec(objective={"margin": 0.05})) == []
    assert changes(before, make_spec(objective={"margin": 0.1})) == ["margin was 0.05 and is 0.1"]
    assert before.hash == declare(make_spec(objective={"margin": 0.05})).hash


# what is recommended


def test_the_cheapest_arm_shown_to_be_close_is_recommended(fill: Fill) -> None:
    store = fill({"full": 0.9, "lora": 0.9}, objective={"margin": 0.5})
    found = recommend(store, Limits())
    assert found.answer == "shown"
    assert "shown to be within 0.5" in found.sentence
    assert "full is not worth it" in found.full_sentence


def test_a_gain_that_is_shown_makes_full_worth_it(fill: Fill) -> None:
    found = recommend(fill({"full": 0.95, "lora": 0.2}), Limits())
    assert (found.answer, found.arm) == ("shown", "full")
    assert "full is worth it by the margin of 0.05" in found.full_sentence


def test_where_nothing_is_shown_the_cheapest_is_the_default_with_its_regret(fill: Fill) -> None:
    found = recommend(fill({"full": 0.6, "lora": 0.57}), Limits())
    assert found.answer == "default"
    assert "expected to lose" in found.sentence
    assert "neither shown nor excluded" in found.full_sentence
    assert found.settling or found.too_close


def test_limits_come_first(fill: Fill, make_record: MakeRecord) -> None:
    store = fill({"full": 0.95, "lora": 0.2})
    peaks = {c.arm: c.peak_bytes for c in recommend(store, Limits()).candidates}
    assert peaks["full"] is not None
    tight = recommend(store, Limits(memory_bytes=peaks["full"] // 2))
    assert tight.answer == "none"
    assert not tight.unfinished
    assert "memory over the limit" in tight.sentence
    assert recommend(store, Limits(memory_bytes=10 << 30)).arm == "full"
    strict = recommend(store, Limits(quality=0.8))
    assert {c.arm: c.feasible for c in strict.candidates} == {"full": "yes", "lora": "no"}
    assert "the only configuration within the limits" in strict.sentence


def test_of_one_run_there_is_no_bound_of_its_time(fill: Fill) -> None:
    alone = recommend(fill({"full": 0.9, "lora": 0.9}, {"full": 1, "lora": 1}), Limits(hours=1.0))
    assert {c.arm: c.why for c in alone.candidates} == dict.fromkeys(("full", "lora"), "one run: no bound of its time")


def test_arms_beyond_the_limits_do_not_stand_in_the_way_of_those_within(fill: Fill, make_record: MakeRecord) -> None:
    store = fill({"full": 0.95, "lora": 0.2})
    peaks = {c.arm: c.peak_bytes for c in recommend(store, Limits()).candidates}
    heavy = [r for r in store.records() if r.phase == "confirm" and r.trial.arm == "full"]
    for record in heavy:
        assert record.memory is not None
        memory = record.memory.model_copy(update={"weights": 10 * record.memory.weights})
        store.write(record.model_copy(update={"memory": memory, "attempt": 2}))
    assert peaks["lora"] is not None
    found = recommend(store, Limits(memory_bytes=2 * peaks["lora"]))
    assert (found.answer, found.arm) == ("shown", "lora"), "full is better by far, and no choice"
    assert "the only configuration within the limits" in found.sentence
    assert {c.arm: c.best_probability for c in found.candidates} == {"full": None, "lora": 1.0}


def test_an_arm_that_is_shown_to_lose_is_not_the_default_however_cheap(fill: Fill, make_record: MakeRecord) -> None:
    store = fill({"full": 0.6, "lora": 0.1})
    for record in [r for r in store.records() if r.phase == "confirm" and r.trial.arm == "lora"]:
        store.write(record.model_copy(update={"seconds": record.seconds / 100, "attempt": 2}))
    found = recommend(store, Limits(margin=0.0))
    assert found.arm == "full", "lora costs a hundredth and is ruled out as the best"


def test_without_any_comparison_the_cheapest_close_mean_is_named_and_called_noise(fill: Fill) -> None:
    found = recommend(fill({"full": 0.95, "lora": 0.2}, {"full": 1, "lora": 1}, confirm={"seeds": [101]}), Limits())
    assert (found.answer, found.arm) == ("default", "full"), "a run of lora costs the same and is far behind"
    assert "Nothing is shown yet (the noise between runs is not known)" in found.sentence
    assert "noise ignored" in found.sentence


def test_another_metric_may_be_asked_for_and_is_exploratory(fill: Fill) -> None:
    store = fill({"full": 0.95, "lora": 0.2})
    found = recommend(store, Limits(metric="test_loss"))
    assert found.exploratory
    assert "0 of test_loss" in found.sentence, "the study's margin is in units of its own metric"
    assert not recommend(store, Limits(metric=gather(store).metric)).exploratory
    with pytest.raises(SpecError, match=r"no run of s was scored on 'tset_loss'; did you mean test_loss\?"):
        recommend(store, Limits(metric="tset_loss"))


def test_a_price_given_by_hand_makes_money_a_limit(fill: Fill) -> None:
    store = fill({"full": 0.95, "lora": 0.9})
    hours = max(c.run_cost or 0.0 for c in recommend(store, Limits()).candidates)
    assert recommend(store, Limits(money=1.0)).answer == "none", "no price is known"
    assert recommend(store, Limits(money=1.0, per_hour=0.5 / hours)).answer != "none"
    assert recommend(store, Limits(money=1.0, per_hour=2.0 / hours)).answer == "none"


def test_a_study_of_one_arm_shows_nothing(fill: Fill) -> None:
    only = {"full": {"method": "full", "quantization": "fp32", "params": {"learning_rate": 1e-3}}}
    found = recommend(fill({"full": 0.9}, arms=only), Limits())
    assert found.answer == "default"
    assert found.sentence == "Use full: the study has no other configuration to compare it with."


def test_an_arm_that_only_was_out_of_memory_is_no_choice_one_that_goes_on_is_unknown(
    fill: Fill, make_record: MakeRecord
) -> None:
    store = fill({"full": 0.9}, {"full": 3, "lora": 0})
    assert {c.arm: c.why for c in recommend(store, Limits()).candidates}["lora"] == "no confirmed run"
    lost = make_record(
        {"study": "s", "arm": "lora", "phase": "search", "seed": 0, "params": {"learning_rate": 1e-3}},
        question_id=store.spec().question_id, status="out_of_memory",
    )  # fmt: skip
    store.write(lost)
    assert {c.arm: c.feasible for c in recommend(store, Limits()).candidates}["lora"] == "unknown", "it goes on"


def test_beyond_the_limits_the_baseline_settles_nothing(fill: Fill, make_record: MakeRecord) -> None:
    arms = {n: {"method": "lora", "quantization": "fp32", "params": {"learning_rate": 1e-3}} for n in ("a", "b", "c")}
    store = fill({"a": 0.9, "b": 0.6, "c": 0.6}, arms=arms)
    for record in [r for r in store.records() if r.phase == "confirm" and r.trial.arm == "a"]:
        assert record.memory is not None
        memory = record.memory.model_copy(update={"weights": 10 * record.memory.weights})
        store.write(record.model_copy(update={"memory": memory, "attempt": 2}))
    least = min(c.peak_bytes or 0 for c in recommend(store, Limits()).candidates)
    found = recommend(store, Limits(memory_bytes=2 * least, margin=0.0))
    assert found.answer == "default"
    assert [{s.arm, s.against} for s in found.settling] == [{"b", "c"}] or len(found.too_close) == 1


def test_many_arms_with_one_reason_are_counted(fill: Fill, make_spec: MakeSpec) -> None:
    arms = {f"a{i}": {"method": "lora", "quantization": "fp32", "params": {"learning_rate": 1e-3}} for i in range(6)}
    found = recommend(fill({}, arms=arms), Limits())
    assert found.sentence == "Nothing is judged yet (6 configurations: no confirmed run)."
    assert found.unfinished


def test_another_margin_than_the_declared_one_is_exploratory(fill: Fill) -> None:
    store = fill({"full": 0.95, "lora": 0.2})
    assert not recommend(store, Limits()).exploratory
    assert not recommend(store, Limits(margin=0.05)).exploratory
    assert recommend(store, Limits(margin=0.1)).exploratory


def test_the_naive_answer_stands_beside_ours(fill: Fill) -> None:
    assert recommend(fill({"full": 0.95, "lora": 0.2}), Limits()).naive.startswith("comparing means would pick full")


def test_a_point_breaks_even_at_the_cost_difference_over_the_gain() -> None:
    assert break_even(12.0, 0.03) == pytest.approx(4.0)  # 12 more for 3 points: 4 a point
    assert break_even(12.0, 0.0) is None


def test_nothing_is_recommended_from_a_study_without_confirmed_runs(fill: Fill) -> None:
    found = recommend(fill({"full": 0.9, "lora": 0.9}, {"full": 0, "lora": 0}), Limits())
    assert found.answer == "none"
    assert "no confirmed run" in found.sentence
