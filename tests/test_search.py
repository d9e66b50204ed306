"""Tuning: equal budgets, start values first, and a journal that can be lost without changing what is tried."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import MakeRecord
from optuna.trial import TrialState

from harness.record import Record, best
from harness.search import ArmSearch, Asked, open_storage
from harness.spec import Arm

RATE = {"low": 1e-4, "high": 1e-2, "log": True, "start": [1e-3, 1e-2]}
Ended = Callable[..., Record]


def an_arm(**search: Any) -> Arm:
    return Arm.model_validate(
        {"method": "lora", "quantization": "fp32", "params": {"alpha": 32}, "search": search or {"learning_rate": RATE}}
    )


def tuning(folder: Path, arm: Arm | None = None, budget: int = 4, seed: int = 0) -> ArmSearch:
    return ArmSearch(open_storage(folder / "search.journal"), "s", "lora", arm or an_arm(), budget, seed)


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s/lora", storage=open_storage(folder / "search.journal")).trials


@pytest.fixture
def ended(make_record: MakeRecord) -> Ended:
    """The record of what was asked for; the loss is made up from the learning rate."""

    def end(asked: Asked, status: str = "done", **changes: Any) -> Record:
        loss = {"task": "validation_loss", "metric": "loss", "value": loss_of(asked.params), "items": 1, "role": "loss"}
        scores = [{**loss, "higher_is_better": False}] if status == "done" else []
        trial = {"phase": "search", "seed": 0, "params": asked.params, "number": asked.number}
        return make_record(trial=trial, status=status, scores=scores, **changes)

    return end


def loss_of(params: dict[str, Any]) -> float:
    return abs(float(params["learning_rate"]) - 2e-3) * 1000


def given(asked: Asked | None) -> Asked:
    assert asked is not None
    return asked


def finish(search: ArmSearch, ended: Ended, status: str = "done") -> list[Record]:
    """Ask and tell until the budget is given out."""
    records = []
    while (asked := search.ask()) is not None:
        record = ended(asked, status)
        search.launched(asked.number, record.trial_id)
        search.tell(asked.number, record)
        records.append(record)
    return records


def rates(records: list[Record]) -> list[float]:
    return [float(r.trial.params["learning_rate"]) for r in records]


def test_the_budget_is_spent_and_no_more(tmp_path: Path, ended: Ended) -> None:
    search = tuning(tmp_path, budget=5)
    search.reconcile([])
    assert len(finish(search, ended)) == 5
    assert search.finished
    assert search.ask() is None


@pytest.mark.parametrize("status", ["out_of_memory", "diverged", "failed", "timed_out"])
def test_a_trial_that_went_wrong_counts_against_the_budget(tmp_path: Path, ended: Ended, status: str) -> None:
    # an arm that fails often would otherwise be tuned more than the others
    search = tuning(tmp_path, budget=3)
    search.reconcile([])
    assert len(finish(search, ended, status)) == 3


def test_start_values_come_first_and_in_their_order(tmp_path: Path, ended: Ended) -> None:
    search = tuning(tmp_path)
    search.reconcile([])
    found = rates(finish(search, ended))
    assert found[:2] == [1e-3, 1e-2]
    assert all(1e-4 <= rate <= 1e-2 for rate in found[2:])


def test_start_values_beyond_the_budget_are_left_out(tmp_path: Path, ended: Ended) -> None:
    search = tuning(tmp_path, budget=1)
    search.reconcile([])
    assert rates(finish(search, ended)) == [1e-3]


def test_what_is_fixed_is_part_of_every_trial(tmp_path: Path) -> None:
    search = tuning(tmp_path)
    search.reconcile([])
    assert given(search.ask()).params == {"alpha": 32, "learning_rate": 1e-3}


def test_start_values_do_not_wait_for_each_other_and_samples_do(tmp_path: Path, ended: Ended) -> None:
    search = tuning(tmp_path)
    search.reconcile([])
    first, second = given(search.ask()), given(search.ask())
    assert search.ask() is None  # what comes third depends on both their scores
    search.tell(second.number, ended(second))
    assert search.ask() is None
    search.tell(first.number, ended(first))
    assert search.ask() is not None


def test_the_same_scores_give_the_same_proposals(tmp_path: Path, ended: Ended) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        search = tuning(tmp_path / name, budget=7)
        search.reconcile([])
        found.append(rates(finish(search, ended)))
    assert found[0] == found[1]
    assert len(set(found[0])) == 7


def test_another_seed_gives_other_proposals(tmp_path: Path, ended: Ended) -> None:
    found = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        search = tuning(tmp_path / str(seed), seed=seed)
        search.reconcile([])
        found.append(rates(finish(search, ended)))
    assert found[0][:2] == found[1][:2]
    assert found[0][2:] != found[1][2:]


def test_another_process_goes_on_as_this_one_would(tmp_path: Path, ended: Ended) -> None:
    # two trials here, the rest in a process of its own, against all of them in one
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    search = tuning(tmp_path / "whole", budget=6)
    search.reconcile([])
    expected = rates(finish(search, ended))
    first = tuning(tmp_path / "parts", budget=6)
    first.reconcile([])
    for _ in range(3):
        asked = given(first.ask())
        first.tell(asked.number, ended(asked))
    code = (
        "import sys, json; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path; from test_search import tuning, loss_of\n"
        "search = tuning(Path(sys.argv[1]), budget=6); found = []\n"
        "while (asked := search.ask()) is not None:\n"
        "    found.append(asked.params['learning_rate'])\n"
        "    search._live.clear(); search._study.tell(asked.number, loss_of(asked.params))\n"
        "    if len(found) == 3: break\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "parts")],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert json.loads(done.stdout) == expected[3:]


def test_a_lost_journal_is_made_again_from_the_records(tmp_path: Path, ended: Ended) -> None:
    search = tuning(tmp_path, budget=6)
    search.reconcile([])
    whole = finish(search, ended)
    before = [(t.params, t.value, t.state) for t in trials(tmp_path)]
    (tmp_path / "search.journal").unlink()
    again = tuning(tmp_path, budget=6)
    again.reconcile(whole)
    assert [(t.params, t.value, t.state) for t in trials(tmp_path)] == before
    assert again.finished
    assert again.ask() is None


def test_a_journal_lost_halfway_does_not_change_what_is_tried_next(tmp_path: Path, ended: Ended) -> None:
    for name in ("kept", "lost"):
        (tmp_path / name).mkdir()
    kept = tuning(tmp_path / "kept", budget=6)
    kept.reconcile([])
    expected = finish(kept, ended)
    lost = tuning(tmp_path / "lost", budget=6)
    lost.reconcile(expected[:3])
    assert rates(finish(lost, ended)) == rates(expected[3:])


def test_a_larger_budget_goes_on_where_the_smaller_one_ended(tmp_path: Path, ended: Ended) -> None:
    small = tuning(tmp_path, budget=3)
    small.reconcile([])
    first = finish(small, ended)
    large = tuning(tmp_path, budget=5)
    large.reconcile(first)
    assert len(finish(large, ended)) == 2


def test_a_trial_left_running_is_given_out_again_as_it_was(tmp_path: Path, ended: Ended) -> None:
    search = tuning(tmp_path)
    search.reconcile([])
    records = []
    for _ in range(2):
        asked = given(search.ask())
        records.append(ended(asked))
        search.tell(asked.number, records[-1])
    cut_off = given(search.ask())  # and the process is gone
    again = tuning(tmp_path)
    again.reconcile(records)
    assert given(again.ask()) == cut_off
    assert again.begun == 3


def test_a_trial_whose_record_is_gone_is_given_out_again(tmp_path: Path, ended: Ended) -> None:
    search = tuning(tmp_path)
    search.reconcile([])
    first = given(search.ask())
    search.tell(first.number, ended(first))
    again = tuning(tmp_path)
    again.reconcile([])  # somebody moved the file out of the store
    rates = [given(again.ask()).params["learning_rate"] for _ in range(2)]
    assert first.params["learning_rate"] in rates


def test_a_trial_that_ended_while_nobody_listened_is_told_from_its_record(tmp_path: Path, ended: Ended) -> None:
    search = tuning(tmp_path)
    search.reconcile([])
    asked = given(search.ask())
    record = ended(asked)
    search.launched(asked.number, record.trial_id)  # the record was written, and the driver was gone
    again = tuning(tmp_path)
    again.reconcile([record])
    assert trials(tmp_path)[asked.number].state == TrialState.COMPLETE
    assert given(again.ask()).params["learning_rate"] == 1e-2


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("done", TrialState.COMPLETE),
        ("out_of_memory", TrialState.PRUNED),
        ("diverged", TrialState.PRUNED),
        ("timed_out", TrialState.PRUNED),
        ("failed", TrialState.FAIL),
        ("killed", TrialState.FAIL),
    ],
)
def test_what_the_sampler_is_told(tmp_path: Path, ended: Ended, status: str, state: TrialState) -> None:
    # PRUNED teaches it to keep away; a crash says nothing about the configuration
    search = tuning(tmp_path)
    search.reconcile([])
    asked = given(search.ask())
    search.tell(asked.number, ended(asked, status))
    search.tell(asked.number, ended(asked, status))  # twice is as good as once
    assert trials(tmp_path)[asked.number].state == state


def test_a_failed_trial_that_is_to_run_again_is_given_out_again(tmp_path: Path, ended: Ended) -> None:
    search = tuning(tmp_path)
    search.reconcile([])
    first = finish(search, ended, "failed")
    for _ in range(2):  # a command that is stopped before it has run them does not make them more
        again = tuning(tmp_path)
        again.reconcile([], again=first)
    assert again.spent == 0
    second = finish(again, ended)
    assert [r.trial_id for r in second] == [r.trial_id for r in first]
    assert again.finished
    later = tuning(tmp_path)
    later.reconcile(second)
    assert later.finished
    assert later.ask() is None


def test_whole_numbers_are_searched_as_whole_numbers(tmp_path: Path, ended: Ended) -> None:
    # lora's rank is an int: 11.3 would be refused by every trial that got it
    log = an_arm(learning_rate=RATE, rank={"low": 4, "high": 64, "log": True, "start": [8]})
    search = tuning(tmp_path, log, budget=6)
    search.reconcile([])
    ranks = [r.trial.params["rank"] for r in finish(search, ended)]
    assert ranks[0] == 8
    assert all(isinstance(rank, int) and 4 <= rank <= 64 for rank in ranks)


def test_a_number_that_need_not_be_whole_is_not_rounded(tmp_path: Path, ended: Ended) -> None:
    # alpha is a float though the bounds look whole, and its start value is kept
    arm = an_arm(learning_rate=RATE, dropout={"low": 0, "high": 1, "start": [0.25]})
    search = tuning(tmp_path, arm, budget=6)
    search.reconcile([])
    values = [float(r.trial.params["dropout"]) for r in finish(search, ended)]
    assert values[0] == 0.25
    assert any(0 < v < 1 for v in values[1:])


def test_choices_are_tried_as_they_are_written(tmp_path: Path, ended: Ended) -> None:
    arm = an_arm(learning_rate=RATE, targets={"choices": ["q_proj", "all-linear"], "start": ["all-linear"]})
    search = tuning(tmp_path, arm, budget=3)
    search.reconcile([])
    found = [r.trial.params["targets"] for r in finish(search, ended)]
    assert found[0] == "all-linear"
    assert set(found) <= {"q_proj", "all-linear"}


def test_a_space_smaller_than_the_budget_is_searched_to_its_end(tmp_path: Path, ended: Ended) -> None:
    search = tuning(tmp_path, an_arm(learning_rate={"choices": [1e-3]}), budget=3)
    search.reconcile([])
    assert rates(finish(search, ended)) == [1e-3] * 3


def test_the_best_is_the_lowest_loss_among_the_completed(tmp_path: Path, ended: Ended) -> None:
    records = [
        ended(Asked(0, {"learning_rate": 1e-3})),  # loss 1
        ended(Asked(1, {"learning_rate": 2e-3})),  # loss 0, which must not be read as "no loss"
        ended(Asked(2, {"learning_rate": 3e-3}), "diverged"),
    ]
    assert best(records, "lora") == records[1]
    assert best(records, "full") is None
    assert best(records[2:], "lora") is None
