"""Was the search fair and finished: the ledger, what is left, the sentence, the charts' values, importances."""

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import MakeRecord, MakeSpec, Open
from stores import generate

from harness.record import Record, Score, Status
from harness.spec import StudySpec
from harness.store import Store, StudyStore
from harness.summary import gather
from harness.wording import STATUSES
from harness.words import capital

pytest.importorskip("streamlit", reason="the dashboard is an extra")

from dashboard.views import search, search_charts, search_rates  # after the check that it is there
from dashboard.views.banner import Banner


def loss(value: float) -> list[Score]:
    return [
        Score(task="validation_loss", metric="loss", value=value, items=4, role="loss", higher_is_better=False)
    ]  # fmt: skip


def read(store: StudyStore) -> search.Tuning:
    return search.tuning(gather(store))


def banner(store: StudyStore) -> Banner:
    return search.banner(gather(store), read(store))


class Study:
    """Writes runs of a study into a store."""

    def __init__(self, tmp_path: Path, spec: StudySpec, make_record: MakeRecord) -> None:
        self.spec, self.make = spec, make_record
        self.store = Store(tmp_path).open(spec)

    def run(self, arm: str, phase: str, value: float | None = None, **fields: Any) -> Record:
        """A run at a learning rate; without a value it ended as `status` says."""
        trial = {
            "study": self.spec.name, "arm": arm, "phase": phase, "controls": self.spec.controls,
            "method": self.spec.arms[arm].method, "seed": fields.pop("seed", 0 if phase == "search" else 101),
            "params": fields.pop("params", {"learning_rate": fields.pop("rate", 1e-3)}),
            "number": fields.pop("number", None), "micro_batch": fields.pop("micro_batch", None),
        }  # fmt: skip
        status: Status = fields.pop("status", "done")
        fields.setdefault("scores", [] if value is None else loss(value))
        record = self.make(trial, question_id=self.spec.question_id, status=status, **fields)
        self.store.write(record)
        return record


@pytest.fixture
def study(tmp_path: Path, make_record: MakeRecord, make_spec: MakeSpec) -> Study:
    """`full` and `lora`, two tuning trials and two confirmed runs each."""
    return Study(tmp_path, make_spec(), make_record)


@pytest.mark.parametrize("flavour", ["cpu", "cuda"])
def test_the_ledger_sums_to_the_trial_log(tmp_path: Path, flavour: Any) -> None:
    store = generate(tmp_path, "lab", 203, flavour=flavour)
    log = store.table("trials")
    found = read(store)
    accounts = [*found.accounts, *found.others]
    assert sum(a.runs for a in accounts) == len(log) == 203
    assert sum(a.seconds for a in accounts) == pytest.approx(log["seconds"].sum())
    by_status: Counter[str] = Counter()
    for account in accounts:
        by_status.update(account.statuses)
    assert by_status == Counter(log["status"])
    tuning = log.loc[log["phase"] == "search", "seconds"].sum()
    assert sum(a.tuning_seconds for a in accounts) == pytest.approx(tuning)


def test_the_last_line_of_the_ledger_is_the_sum_of_the_others(tmp_path: Path) -> None:
    table = search.ledger(read(generate(tmp_path, "lab", 60)))
    *rows, total = table["Runs in the log"]
    assert total == sum(rows) == 60
    ends = [c for c in table.columns if c in map(capital, STATUSES.values())]
    assert list(table[ends].sum(axis=1)) == list(table["Runs in the log"])


def test_a_run_that_goes_on_at_a_smaller_micro_batch_is_one_trial_and_two_runs(study: Study) -> None:
    study.run("full", "search", status="out_of_memory", number=0)
    study.run("full", "search", 0.5, number=0, micro_batch=8)
    account = read(study.store).accounts[0]
    assert (account.tuned, account.runs) == (1, 2)
    assert account.statuses == {"done": 1, "out_of_memory": 1}


def test_what_is_left_is_said_phase_by_phase(study: Study) -> None:
    study.run("full", "search", 0.5, number=0)
    study.run("full", "search", 0.4, number=1, rate=3e-3)
    study.run("lora", "search", 0.6, number=0)
    found = {p.phase: (p.done, p.planned) for p in read(study.store).progress}
    assert found == {"baseline": (0, 1), "search": (3, 4), "confirm": (0, 4)}
    assert "6 of 9 planned runs are left to run" in banner(study.store).sentence  # 1 + 1 + 4


def test_a_killed_run_is_left_to_run_again(study: Study) -> None:
    study.run("full", "search", status="killed", number=0)
    assert next(p.done for p in read(study.store).progress if p.phase == "search") == 0


def test_an_arm_that_never_completed_a_trial_has_no_confirmed_runs_left(study: Study) -> None:
    study.run("full", "search", status="diverged", number=0)
    study.run("full", "search", status="diverged", number=1, rate=3e-3)
    assert next(p.planned for p in read(study.store).progress if p.phase == "confirm") == 2  # those of lora


def test_unequal_budgets_are_named_with_their_numbers(study: Study) -> None:
    study.run("full", "search", 0.5, number=0)
    study.run("full", "search", 0.4, number=1, rate=3e-3)
    study.run("lora", "search", 0.6, number=0)
    said = banner(study.store)
    assert said.sentence.startswith("Budgets differ so far (full 2, lora 1 of 2 tuning trials)")
    assert said.badge == "Not finished"


def test_a_finished_study_of_equal_budgets_is_fair_unless_a_best_rate_lies_at_an_edge(tmp_path: Path) -> None:
    said = banner(generate(tmp_path, "lab", 120))
    assert said.badge == "Fair and finished"
    assert "nothing is left to run; no best learning rate lies at the edge" in said.sentence


def test_a_best_rate_at_the_edge_is_named(study: Study) -> None:
    for arm, losses in {"full": [0.5, 0.4], "lora": [0.4, 0.4]}.items():
        for number, value in enumerate(losses):
            study.run(arm, "search", value, number=number, rate=[1e-3, 3e-3][number])
    assert [c.edge for c in read(study.store).chosen] == [True, True]  # of two rates either is an edge
    assert "at the edge of what was tried for full and lora" in banner(study.store).sentence


def test_a_rate_between_two_others_is_no_edge(study: Study) -> None:
    for number, (rate, value) in enumerate([(1e-3, 0.5), (3e-3, 0.4), (1e-2, 0.6)]):
        study.run("full", "search", value, number=number, rate=rate)
    (chosen,) = read(study.store).chosen
    assert (chosen.rate, chosen.edge, chosen.rates) == (3e-3, False, 3)


def test_the_best_so_far_never_rises_and_failures_leave_it(study: Study) -> None:
    study.run("full", "search", 0.5, number=0, rate=1e-3)
    study.run("full", "search", status="diverged", number=1, rate=1e-2)
    study.run("full", "search", 0.7, number=2, rate=3e-3)
    study.run("full", "search", 0.3, number=3, rate=2e-3)
    tried = read(study.store).tried
    assert list(tried["number"]) == [1, 2, 3, 4]
    assert list(tried["best"]) == [0.5, 0.5, 0.5, 0.3]
    assert tried["loss"].isna().tolist() == [False, True, False, False]
    assert search_charts.signs(tried) == "Letters at the upper edge are trials without a score: D diverged."


def test_a_diverged_run_has_no_loss_whatever_it_scored(study: Study) -> None:
    study.run("full", "search", 0.1, number=0, status="diverged")
    assert read(study.store).tried["loss"].isna().all()


def test_of_very_many_trials_the_best_ones_are_all_drawn() -> None:
    # the one that matters is not a third one, so even thinning alone would lose it
    losses = [1.0] * 5001 + [0.5] + [1.0] * 998
    frame = pd.DataFrame({"series": "lora", "number": range(1, 6001), "loss": losses, "ended": "done"})
    frame.loc[1::3, ["loss", "ended"]] = [float("nan"), "diverged"]  # none of them is an n-th of all
    frame.loc[5001, ["loss", "ended"]] = [0.5, "done"]
    frame["best"] = frame["loss"].cummin().ffill()
    drawn = search_charts.thinned(frame)
    assert len(drawn) < 2100
    assert 5002 in set(drawn["number"])
    assert (drawn["ended"] == "diverged").sum() == 667  # each third of 2000
    assert search_charts.left_out(frame, drawn).startswith(f"Drawn are {len(drawn)} of 6000 trials")
    few = frame.head(100)
    assert search_charts.thinned(few) is few


def test_losses_over_a_wide_range_are_drawn_on_a_logarithmic_scale() -> None:
    assert search_charts.is_wide(pd.Series([0.05, 2.0]))
    assert not search_charts.is_wide(pd.Series([0.5, 2.0]))
    assert not search_charts.is_wide(pd.Series([0.0, 2.0]))  # has no logarithm


def test_a_parameter_that_decides_the_loss_explains_it_and_another_does_not() -> None:
    # two groups of four with losses 1 2 3 4 | 5 6 7 8: within 5 + 5, in all 42; 1 - (10/6) / (42/7) = 0.722
    frame = pd.DataFrame(
        {"rank": [4, 4, 4, 4, 8, 8, 8, 8], "noise": [1, 2, 2, 1, 1, 2, 2, 1], "loss": [1.0, 2, 3, 4, 5, 6, 7, 8]}
    )
    table = search_rates.importance(frame)
    assert table is not None
    shares = dict(zip(table["Parameter"], table["Share"], strict=True))
    assert shares["Rank"] == pytest.approx(0.7222, abs=1e-4)
    assert shares["Noise"] == 0.0


def test_a_valley_over_learning_rates_is_seen() -> None:
    # a rank correlation of a valley is 0
    rates = [10**-x for x in range(20)]
    frame = pd.DataFrame({"learning_rate": rates, "rank": [4, 8] * 10, "loss": [abs(x - 9.5) for x in range(20)]})
    assert frame["learning_rate"].corr(frame["loss"], method="spearman") == pytest.approx(0, abs=0.01)
    table = search_rates.importance(frame)
    assert table is not None
    assert table["Parameter"][0] == "Learning rate"
    assert table["Share"][0] > 0.8


def test_too_few_trials_or_parameters_give_no_importance_and_say_what_it_takes() -> None:
    few = pd.DataFrame({"rank": [4, 8, 4, 8], "alpha": [1, 1, 2, 2], "loss": [0.1, 0.2, 0.3, 0.4]})
    assert search_rates.importance(few) is None
    assert search_rates.missing(few) == "Importances need 8 completed trials of a configuration; here are 4."
    assert search_rates.missing(few[["rank", "loss"]]) == "Importances need 2 parameters that vary, and one does."


def test_only_parameters_that_vary_are_drawn(study: Study) -> None:
    for number, rank in enumerate([4, 8, 16]):
        params = {"learning_rate": 1e-3, "rank": rank, "alpha": 16}
        study.run("lora", "search", 0.1 * rank, number=number, params=params)
    frame = read(study.store).params["lora"]
    assert list(frame.columns) == ["rank", "loss"]
    assert [name for name, _ in search_charts.slices(frame, study.spec, "lora")] == ["Rank"]


def test_results_made_elsewhere_have_no_plan(tmp_path: Path, make_record: MakeRecord, make_spec: MakeSpec) -> None:
    foreign = Study(tmp_path, make_spec(origin={"tool": "PEFT"}), make_record)
    foreign.run("full", "confirm", 0.5)
    said = banner(foreign.store)
    assert said.badge == "Not known"
    assert read(foreign.store).progress == []
    assert search.left(read(foreign.store)) == 0


def test_the_page_shows_the_sentence_the_ledger_and_the_charts(opened: Open, tmp_path: Path) -> None:
    store = generate(tmp_path, "lab", 60)
    app = opened(tmp_path, "search")
    assert not app.exception
    assert any("nothing is left to run" in m.value for m in app.markdown)
    assert len(app.dataframe) == 3  # ledger, progress, learning rates
    assert app.dataframe[0].value["Runs in the log"].iloc[-1] == len(store.table("trials"))


def test_the_page_goes_without_a_chart_where_nothing_was_completed(opened: Open, tmp_path: Path) -> None:
    generate(tmp_path, "oom", 40, kinds=("out_of_memory",))
    app = opened(tmp_path, "search")
    assert not app.exception
    assert any("there is no loss to draw" in t.value for t in app.text)


def test_parameters_beside_the_learning_rate_have_slices_and_an_importance(
    opened: Open, tmp_path: Path, study: Study
) -> None:
    for number in range(9):
        params = {"learning_rate": 1e-3 * (number + 1), "rank": 4 * (1 + number % 2)}
        study.run("lora", "search", 0.1 * (number + 1), number=number, params=params)
    app = opened(tmp_path, "search")
    assert not app.exception
    assert app.selectbox(key="search_arm").value == "lora"
    assert any("Kelley" in c.value for c in app.caption)
