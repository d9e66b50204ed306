"""The decision as one artefact: its sentences, its rows and the run that it names."""

import math
import shlex
from pathlib import Path

import pytest
import stores

from harness import charts, decision, reproduce, wording
from harness.compare import Comparison, Verdict
from harness.decision import Decision
from harness.intervals import Difference, Spread
from harness.recommend import Limits, recommend
from harness.spec import load_study
from harness.store import StudyStore
from harness.summary import gather, summarise
from harness.units import GIB


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    return stores.generate(tmp_path_factory.mktemp("results"), "study", 60, flavour="cuda")


def of_study(store: StudyStore, limits: Limits) -> Decision:
    evidence = gather(store, limits.metric)
    return decision.make(store, evidence, summarise(store, evidence), limits)


def test_its_sentences_are_those_of_the_recommendation(store: StudyStore) -> None:
    for limits in (Limits(), Limits(memory_bytes=24 * GIB, margin=0.05), Limits(hours=1e-9)):
        said, found = of_study(store, limits).recommendation, recommend(store, limits)
        assert (said.sentence, said.full_sentence, said.worth) == (found.sentence, found.full_sentence, found.worth)


def test_rows_are_ranked_and_none_is_missing(store: StudyStore) -> None:
    found = of_study(store, Limits())
    scored = [r.quality for r in found.rows if r.quality is not None]
    assert scored == sorted(scored, reverse=True)
    assert {r.arm for r in found.rows} == set(store.spec().arms)


def test_limits_are_said_and_given_as_options() -> None:
    limits = Limits(memory_bytes=24 * GIB, hours=2.0, metric="test_loss", per_hour=0.69)
    assert decision.limits_said(limits, "$") == "24 GiB of GPU memory, 2 h per run"
    assert decision.limits_said(Limits(), "$") == "no limits"
    assert decision.limits_said(Limits(money=5), "EUR") == "5.00 EUR per run"
    flags = ["--vram", "24", "--hours", "2", "--metric", "test_loss", "--per-hour", "0.69"]
    assert decision.flags(limits) == flags


@pytest.mark.parametrize("vram", ["24", "23.7", "0.1", "1000", "23.7000001"])
@pytest.mark.parametrize("number", ["0.1", "2", "1e-07", "0.333333333333333", "0.12345678901234567", "1234567.875"])
def test_limits_that_are_written_are_read_as_the_same(vram: str, number: str) -> None:
    limits = Limits(memory_bytes=int(float(vram) * GIB), hours=float(number), margin=float(number))
    written = decision.limits_written(limits)
    assert written["vram"] == vram
    assert (float(written["hours"]), float(written["margin"])) == (limits.hours, limits.margin)


def test_a_command_is_whole_wherever_the_results_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = StudyStore(Path("it's mine", "s"))
    root = str(tmp_path / "it's mine")
    file = f"{root}/s/study.yaml"
    lines = {
        reproduce.study(found, "name=t"): ["harness", "study", file, "name=t", "--store", root],
        reproduce.again(found): ["harness", "study", file, "--store", f"{root}-again"],
        reproduce.settle(found): ["harness", "next", "s", "--run", "--store", root],
        reproduce.sync(found): ["harness", "sync", "s", "--store", root],
        reproduce.plan(found, "RTX 4090"): ["harness", "plan", file, "--gpu", "RTX 4090", "--store", root],
        reproduce.preset("tiny-bits", found.folder.parent): ["harness", "study", "tiny-bits", "--store", root],
        reproduce.bring("PEFT", found.folder.parent): ["harness", "import", "peft", "PATH", "--store", root],
    }
    for line, words in lines.items():
        assert shlex.split(line) == words


def test_results_made_elsewhere_have_no_command_that_makes_a_run_again(store: StudyStore) -> None:
    record = next(r for r in store.records() if r.phase == "confirm")
    spec = load_study(store.folder / "study.yaml", ["origin.tool=PEFT"])
    assert reproduce.command(record, store.spec(), store.folder / "study.yaml") is not None
    assert reproduce.command(record, spec, store.folder / "study.yaml") is None


def test_an_interval_over_items_is_that_of_wilson() -> None:
    # 47.2 % of 1319: z = 1.96, centre (p + z2 / 2n) / (1 + z2 / n) = 0.472, half-width about 0.027
    low, high = decision.items_interval(0.472, 1319)
    assert low == pytest.approx(0.445, abs=1e-3)
    assert high == pytest.approx(0.499, abs=1e-3)


def test_a_quality_is_never_without_its_interval_or_the_reason(store: StudyStore) -> None:
    found = of_study(store, Limits())
    for row in found.rows:
        said = wording.quality(row, found)
        assert row.quality is None or "[" in said or "one seed" in said


def test_the_command_makes_the_very_same_trial(store: StudyStore) -> None:
    spec, tried = store.spec(), 0
    for record in store.records():
        line = reproduce.command(record, spec, store.folder / "study.yaml")
        if record.phase not in {"search", "confirm"}:
            assert line is None
            continue
        assert line is not None
        _, _, path, *overrides, option, root = shlex.split(line)
        assert (option, root) == ("--store", str(store.folder.parent))
        again = load_study(Path(path), overrides)
        arm = again.arms[record.trial.arm]
        assert list(again.arms) == [record.trial.arm]
        changes = {"controls": again.controls, "params": dict(arm.params), "study": again.name}
        assert record.trial.model_copy(update=changes).id == record.trial_id
        seeds = again.confirm.seeds if record.phase == "confirm" else [again.search.seed]
        assert seeds == [record.trial.seed]
        tried += 1
    assert tried > 20


def test_the_ranked_chart_keeps_the_baseline_and_the_one_to_use(store: StudyStore) -> None:
    found = of_study(store, Limits())
    assert found.chosen is not None
    few = charts.ranked_frame(found, most=1)
    assert {found.baseline, found.chosen.arm} <= set(few["configuration"])
    assert len(few) <= 3
    assert math.isclose(few["quality"].max(), 100 * max(r.quality or 0.0 for r in found.rows))


def test_what_can_be_told_apart_holds_for_all_of_them_together() -> None:
    certain = Spread(2, 0.0, 0.0)  # items alone: 21 of them, 20 degrees of freedom

    def verdict(arm: str, value: float, known: bool = True) -> Verdict:
        noise = Difference(value, certain, certain, 21, 21, 0.01**2) if known else None
        return Verdict(arm, "full", "not shown", None, 2, 21, noise=noise)

    def said(*verdicts: Verdict) -> str:
        return decision.told_apart(Comparison("full", 0.0, 0.05, True, list(verdicts)), "full")

    # t of 20 degrees of freedom: 2.09 at 0.05, 2.61 at 0.05 / 3; 0.023 is 2.3 standard errors of 0.01
    assert said(verdict("a", 0.023)) == "a can be told apart from full."
    assert said(verdict("a", 0.023), verdict("b", 0.05), verdict("c", 0.0)) == (
        "2 of the 3 others cannot be told apart from full."
    )
    assert said(verdict("a", 0.05), verdict("b", 0.05)) == "Each of the 2 others can be told apart from full."
    assert said(verdict("a", 0.05), verdict("b", 0.0, known=False)) == (
        "1 of the 2 others can be told apart from full; 1 cannot be compared."
    )
    assert said(verdict("a", 0.0, known=False), verdict("b", 0.0, known=False)) == (
        "None of the 2 others can be compared with full."
    )
