"""Can I trust this: the values of a study in the rules, what was declared and changed, what differs between runs."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeRecord, MakeSpec, Open
from stores import generate

from harness.decision import Decision, make
from harness.recommend import Limits
from harness.record import Record
from harness.store import Store, StudyStore
from harness.summary import Evidence, gather, summarise

pytest.importorskip("streamlit", reason="the dashboard is an extra")

from dashboard.views import method  # after the check that it is there

NO_LIMITS = Limits()


def read(store: StudyStore) -> tuple[Evidence, Decision]:
    evidence = gather(store)
    return evidence, make(store, evidence, summarise(store, evidence), NO_LIMITS)


def with_versions(make_record: MakeRecord, seed: int, **packages: str) -> Record:
    return make_record({"seed": seed}, environment={"packages": packages, "gpus": [], "cpu": "EPYC", "cores": 2})


@pytest.fixture
def judged(tmp_path: Path) -> StudyStore:
    return generate(tmp_path, "lab", 40)


def test_the_worked_interval_is_the_one_of_the_verdict(judged: StudyStore) -> None:
    evidence, _ = read(judged)
    comparison = evidence.against("full", list(evidence.spec.arms))
    assert comparison is not None
    here = next(r.here for r in method.rules(evidence, judged.declared(), comparison) if "interval" in r.name)
    terms = re.search(r"V = ([\d.e-]+) \+ ([\d.e-]+) \+ ([\d.e-]+) = ([\d.e-]+)", here)
    drawn = re.search(r"([+-][\d.]+) ± ([\d.]+) x ([\d.]+) is \[([+-][\d.]+), ([+-][\d.]+)\]", here)
    assert terms is not None
    assert drawn is not None
    first, second, items, whole = map(float, terms.groups())
    assert first + second + items == pytest.approx(whole, rel=0.01)
    value, t, error, low, high = map(float, drawn.groups())
    assert error == pytest.approx(math.sqrt(whole), rel=0.01)
    assert (value - t * error, value + t * error) == pytest.approx((low, high), abs=3e-4)
    shown = comparison.verdicts[0].interval
    assert shown is not None
    assert (shown.low, shown.high) == pytest.approx((low, high), abs=1e-4)


def test_the_rules_name_the_seeds_items_alpha_and_arms_of_the_study(judged: StudyStore) -> None:
    evidence, _ = read(judged)
    comparison = evidence.against("full", list(evidence.spec.arms))
    here = {r.name: r.here for r in method.rules(evidence, judged.declared(), comparison)}
    assert here["Judged on fresh seeds"] == "Seeds 101, 102, 103, 104, 105; 200 items."
    assert here["Looked at when declared"] == "After 5 seeds; alpha 0.05 in all, 0.05 at a look. Now at 5 seeds."
    assert here["Several arms"] == "3 arms against full: the smallest p is multiplied by 3."
    assert here["A margin"] == "0.02 in units of the metric."


def test_several_looks_have_a_smaller_alpha_each(tmp_path: Path, make_spec: MakeSpec) -> None:
    confirm = {"seeds": [101, 102, 103, 104, 105], "looks": [3, 5]}
    store = Store(tmp_path).open(make_spec(confirm=confirm))
    here = {r.name: r.here for r in method.rules(gather(store), store.declared(), None)}
    assert (
        here["Looked at when declared"] == "After 3 and 5 seeds; alpha 0.05 in all, 0.0226 at a look. Now at 0 seeds."
    )


def test_what_was_changed_after_the_first_run_is_named(tmp_path: Path, make_spec: MakeSpec) -> None:
    Store(tmp_path).open(make_spec(objective={"margin": 0.02}))
    store = Store(tmp_path).open(make_spec(objective={"margin": 0.05}))
    table = method.declaration(store.declared(), store.spec()).set_index("Declared")
    assert table.loc["Margin"].to_list() == ["0.02", "0.05", "yes"]
    assert table.loc["Compared with"].to_list() == ["full", "full", "no"]


def test_a_study_that_was_changed_is_exploratory(judged: StudyStore) -> None:
    spec = judged.spec()
    changed = spec.model_copy(update={"objective": spec.objective.model_copy(update={"margin": 0.5})})
    store = Store(judged.folder.parent).open(changed)
    said = method.banner(gather(store), store.declared())
    assert said.badge == "Exploratory"
    assert said.details[0] == "Margin was 0.02 and is 0.5."


def test_a_study_older_than_declarations_says_so(judged: StudyStore) -> None:
    (judged.folder / "declared.json").unlink()
    evidence, _ = read(judged)
    assert method.banner(evidence, None).badge == "Not declared"
    assert set(method.declaration(None, evidence.spec)["Before the first run"]) == {"not declared"}


def test_packages_that_differ_between_runs_are_named_with_their_runs(make_record: MakeRecord) -> None:
    runs = [with_versions(make_record, 1, torch="2.13.0", peft="0.21.2")] * 2
    runs.append(with_versions(make_record, 2, torch="2.14.0", peft="0.21.2"))
    table = method.versions(runs).set_index("Package")
    assert table.loc["torch", "Version"] == "2.13.0 (2 runs), 2.14.0 (1 run)"
    assert list(table["Differs"]) == ["no", "yes"]  # peft, torch


def test_machines_are_counted_by_their_hardware(make_record: MakeRecord) -> None:
    gpu = {"name": "NVIDIA L40S", "driver": "570.1"}
    two = make_record(environment={"gpus": [gpu, gpu], "cpu": "EPYC", "cores": 8})
    none = make_record(environment={})
    assert method.machines_of([two, two, none]) == {
        "2 x NVIDIA L40S (driver 570.1); EPYC, 8 cores": 2,
        "not known": 1,
    }


def test_a_hash_that_differs_between_runs_is_shown_twice(
    tmp_path: Path, make_record: MakeRecord, make_spec: MakeSpec
) -> None:
    spec = make_spec()
    store = Store(tmp_path).open(spec)
    for seed, digest in ((101, "aaaa"), (102, "bbbb")):
        store.write(make_record({"seed": seed}, question_id=spec.question_id, data={"digest": digest}))
    table = method.hashes(gather(store), store, store.declared()).set_index("What")
    assert table.loc["Tokenized rows", "Hash or commit"] == "aaaa, bbbb"
    assert table.loc["Base model", "Hash or commit"] == "m0"
    assert table.loc["Question", "Hash or commit"] == spec.question_id


def test_a_number_that_no_run_has_is_said_to_be_in_none(judged: StudyStore) -> None:
    table = method.definitions(*read(judged)).set_index("Number")
    assert table.loc["Energy", "Runs that have it"] == "none"  # a CPU has no meter
    assert "sum of tensors" in table.loc["Peak memory", "What it is"]


def test_peak_memory_is_defined_by_the_device_that_ran(tmp_path: Path) -> None:
    table = method.definitions(*read(generate(tmp_path, "rented", 40, flavour="cuda"))).set_index("Number")
    assert "reserved" in table.loc["Peak memory", "What it is"]
    assert "$0.44" in table.loc["Cost of a run", "What it is"]


def test_tasks_are_listed_with_items_and_what_the_base_reaches(judged: StudyStore) -> None:
    table = method.tasks(*read(judged)).set_index("Task")
    assert table.loc["tiny_sort_down", "Judged by"] == "yes"
    assert table.loc["tiny_sort_down", "Items"] == "200"
    assert table.loc["validation loss", "Asked for"] == "tuning"
    assert table.loc["tiny_sort_down", "Base before training"].endswith("(one run)")


def test_results_made_elsewhere_claim_nothing_that_is_not_known(
    tmp_path: Path, make_record: MakeRecord, make_spec: MakeSpec
) -> None:
    origin = {"tool": "PEFT", "note": "how much each method was tuned is not known", "licence": "Apache-2.0"}
    spec = make_spec(origin=origin, confirm={"seeds": [7]})
    store = Store(tmp_path).open(spec)
    for arm in spec.arms:
        store.write(make_record({"arm": arm, "seed": 7}, question_id=spec.question_id))
    evidence, decision = read(store)
    said = method.banner(evidence, None)
    assert said.badge == "Made elsewhere"
    assert "There is no verdict" in said.details[0]
    here = {r.name: r.here for r in method.rules(evidence, None, None)}
    assert here["Tuned alike"] == "PEFT does not say how much each arm was tuned."
    assert here["Looked at when declared"] == "Nothing was declared."
    assert "Apache-2.0" in method.citation(evidence, None)
    assert "How much each method was tuned is not known." in method.limits(evidence)
    assert method.definitions(evidence, decision).set_index("Number").loc["Tokens per second", "What it is"] == (
        "As PEFT counts them."
    )


@pytest.mark.parametrize(
    ("trials", "kinds"), [(0, ("done",)), (1, ("done",)), (60, ("done",)), (20, ("out_of_memory",))]
)
def test_the_page_stands_on_any_study(opened: Open, tmp_path: Path, trials: int, kinds: Any) -> None:
    generate(tmp_path, "lab", trials, kinds=kinds)
    app = opened(tmp_path, "method")
    assert not app.exception
    assert app.header[0].value == "Can I trust this?"
    assert any("declaration" in c.value for c in app.code)


def test_the_page_shows_the_verdicts_at_the_margin_of_the_side_bar(opened: Open, judged: StudyStore) -> None:
    app = opened(judged.folder.parent, "method")
    app.number_input(key="margin").set_value(0.9).run()
    assert not app.exception
    verdicts = next(d.value for d in app.dataframe if "Verdict" in d.value.columns)
    assert set(verdicts["Verdict"]) == {"equivalent"}  # nothing differs by 90 points
    assert any("90 points" in c.value for c in app.caption)
