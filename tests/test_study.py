"""What a study runs and in which order, on a launcher that makes its records up."""

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeSpec

from harness.errors import PluginError, SpecError, StoreError
from harness.interfaces import Event, Interrupted, Job
from harness.record import Forecast, Interval, Record, Score, outcomes
from harness.spec import StudySpec
from harness.store import Store, StudyStore
from harness.study import Outcome, run_study
from harness.trial import Phase, Trial

Ending = Callable[[Job], str]


class MadeUp:
    """A launcher whose runs take no time: the loss is lowest at a learning rate of 2e-3."""

    def __init__(self, ending: Ending = lambda job: "done", slots: int = 1) -> None:
        self.ending, self.slots = ending, slots
        self.ran: list[str] = []

    def run(self, job: Job, on_event: Callable[[Event], None]) -> Record:
        status = self.ending(job)
        self.ran.append(label(job.trial))
        record = made_up(job, status)
        StudyStore(job.folder).write(record)
        return record

    def stop(self) -> None:
        pass


class Silent:
    """A watcher that tells nobody."""

    def begin(self, total: int, done: Sequence[Record], expected: Mapping[Phase, float]) -> None: ...

    def started(self, trial: Trial) -> None: ...

    def event(self, trial: Trial, event: Event) -> None: ...

    def finished(self, record: Record, planned: int) -> None: ...

    def warned(self, text: str) -> None: ...


def made_up(job: Job, status: str) -> Record:
    trial = job.trial
    loss = abs(math.log10(float(trial.params.get("learning_rate", 1)) / 2e-3))
    score = Score(task="validation_loss", metric="loss", value=loss, items=1, role="loss", higher_is_better=False)
    values: dict[str, Any] = {
        "trial": trial, "trial_id": trial.id, "attempt": job.attempt, "question_id": job.question_id, "status": status,
        "started_at": datetime.now(UTC), "seconds": 1.0, "scores": [score] if status == "done" else [],
        "forecast": job.forecast,
    }  # fmt: skip
    return Record.model_validate(values)


def label(trial: Trial) -> str:
    return f"{trial.arm} {trial.phase} {trial.seed}"


def study(spec: StudySpec, folder: Path, launcher: MadeUp, **options: Any) -> Outcome:
    return run_study(spec, Store(folder), launcher, Silent(), **options)


WHOLE = [
    "zero-shot baseline 0",
    *["full search 0", "lora search 0"] * 2,
    *["full confirm 101", "lora confirm 101", "full confirm 102", "lora confirm 102"],
]


def test_the_base_comes_first_then_tuning_in_turn_then_confirmation_seed_by_seed(
    tmp_path: Path, make_spec: MakeSpec
) -> None:
    launcher = MadeUp()
    outcome = study(make_spec(), tmp_path, launcher)
    assert launcher.ran == WHOLE
    assert (outcome.ran, outcome.interrupted, outcome.failed) == (9, False, [])


def test_what_is_confirmed_is_the_best_of_the_tuning(tmp_path: Path, make_spec: MakeSpec) -> None:
    # start values 1e-3 and 1e-2, the loss is lowest at 2e-3
    outcome = study(make_spec(), tmp_path, MadeUp())
    confirmed = [r.trial for r in outcome.records if r.phase == "confirm"]
    assert {t.params["learning_rate"] for t in confirmed} == {1e-3}
    # one whole model an arm is kept, not one a seed
    assert [t.keep_model for t in confirmed] == [t.seed == 101 for t in confirmed]


def test_nothing_is_run_twice(tmp_path: Path, make_spec: MakeSpec) -> None:
    study(make_spec(), tmp_path, MadeUp())
    again = MadeUp()
    outcome = study(make_spec(), tmp_path, again)
    assert (again.ran, outcome.ran, len(outcome.records)) == ([], 0, 9)


def test_more_seeds_and_trials_only_add(tmp_path: Path, make_spec: MakeSpec) -> None:
    study(make_spec(), tmp_path, MadeUp())
    seeds = MadeUp()
    study(make_spec(confirm={"seeds": [101, 102, 103]}), tmp_path, seeds)
    assert seeds.ran == ["full confirm 103", "lora confirm 103"]
    trials = MadeUp()
    study(make_spec(search={"trials": 3}), tmp_path, trials)
    assert trials.ran[:2] == ["full search 0", "lora search 0"]


def test_two_slots_run_the_same_trials_as_one(tmp_path: Path, make_spec: MakeSpec) -> None:
    spec = make_spec(search={"trials": 5})
    one = study(spec, tmp_path / "one", MadeUp())
    two = study(spec, tmp_path / "two", MadeUp(slots=2))
    assert {r.trial_id for r in one.records} == {r.trial_id for r in two.records}


def test_a_lost_journal_changes_nothing(tmp_path: Path, make_spec: MakeSpec) -> None:
    spec = make_spec(search={"trials": 4})
    study(spec, tmp_path, MadeUp())
    (tmp_path / "s" / "search.journal").unlink()
    again = MadeUp()
    study(spec, tmp_path, again)
    assert again.ran == []


def killed_first(times: int) -> Ending:
    left = {"n": times}

    def end(job: Job) -> str:
        if job.trial.arm == "lora" and job.trial.phase == "search" and left["n"]:
            left["n"] -= 1
            return "killed"
        return "done"

    return end


def test_a_trial_killed_once_is_run_again(tmp_path: Path, make_spec: MakeSpec) -> None:
    launcher = MadeUp(killed_first(1))
    outcome = study(make_spec(), tmp_path, launcher)
    assert launcher.ran.count("lora search 0") == 3
    assert outcome.failed == []
    again = next(r for r in outcome.records if r.attempt == 2)
    assert (again.status, label(again.trial)) == ("done", "lora search 0")
    assert {r.status for r in outcome.records} == {"done"}


def test_a_trial_killed_twice_is_kept_as_killed_and_the_study_goes_on(tmp_path: Path, make_spec: MakeSpec) -> None:
    launcher = MadeUp(killed_first(2))
    outcome = study(make_spec(), tmp_path, launcher)
    assert [(r.status, r.attempt) for r in outcome.failed] == [("killed", 2)]
    assert launcher.ran.count("lora confirm 101") == 1  # of the other learning rate


def test_a_killed_trial_is_run_again_by_the_next_command(tmp_path: Path, make_spec: MakeSpec) -> None:
    study(make_spec(), tmp_path, MadeUp(killed_first(2)))
    again = MadeUp()
    outcome = study(make_spec(), tmp_path, again)
    assert again.ran[0] == "lora search 0"
    assert outcome.failed == []
    assert len([r for r in outcome.records if r.phase == "search"]) == 4  # it took its old place


@pytest.mark.parametrize("phase", ["baseline", "search", "confirm"])
def test_failed_trials_are_run_again_only_when_asked_for(tmp_path: Path, make_spec: MakeSpec, phase: str) -> None:
    first = study(make_spec(), tmp_path, MadeUp(lambda job: "failed" if job.trial.phase == phase else "done"))
    broken = {r.trial_id for r in first.failed}
    assert {r.phase for r in first.failed} == {phase}
    untouched = MadeUp()
    assert {r.trial_id for r in study(make_spec(), tmp_path, untouched).failed} == broken
    assert untouched.ran == []
    again = MadeUp()
    outcome = study(make_spec(), tmp_path, again, retry_failed=True)
    assert outcome.failed == []
    assert {r.trial_id for r in outcome.records if r.attempt == 2} == broken
    assert again.ran.count(WHOLE[0]) == (phase == "baseline")
    assert len(outcome.records) == 9


def test_a_failed_trial_that_fails_again_is_not_run_a_third_time(tmp_path: Path, make_spec: MakeSpec) -> None:
    def broken(job: Job) -> str:
        return "failed" if job.trial.phase == "search" else "done"

    study(make_spec(), tmp_path, MadeUp(broken))
    again = MadeUp(broken)
    study(make_spec(), tmp_path, again, retry_failed=True)
    assert again.ran == ["full search 0", "lora search 0"] * 2


@pytest.mark.parametrize("status", ["diverged", "failed", "timed_out"])
def test_an_arm_that_completes_no_tuning_is_not_confirmed_and_the_study_ends(
    tmp_path: Path, make_spec: MakeSpec, status: str
) -> None:
    launcher = MadeUp(lambda job: status if job.trial.arm == "lora" else "done")
    outcome = study(make_spec(), tmp_path, launcher)
    assert launcher.ran.count("lora search 0") == 2
    assert not [label for label in launcher.ran if label.startswith("lora confirm")]
    assert launcher.ran[-2:] == ["full confirm 101", "full confirm 102"]
    assert not outcome.interrupted


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Interrupted])
def test_a_stopped_study_goes_on_where_it_stopped(
    tmp_path: Path, make_spec: MakeSpec, stop: type[BaseException]
) -> None:
    def end(job: Job) -> str:
        if len(launcher.ran) == 3:
            raise stop
        return "done"

    launcher = MadeUp(end)
    outcome = study(make_spec(), tmp_path, launcher)
    assert outcome.interrupted
    assert (launcher.ran, len(outcome.records)) == (WHOLE[:3], 3)
    again = MadeUp()
    outcome = study(make_spec(), tmp_path, again)
    assert not outcome.interrupted
    assert again.ran == WHOLE[3:]
    # the trial that was cut off ran with the parameters it had
    whole = study(make_spec(), tmp_path / "whole", MadeUp())
    assert {r.trial_id for r in outcome.records} == {r.trial_id for r in whole.records}


def test_two_commands_on_one_study_do_not_run_at_once(tmp_path: Path, make_spec: MakeSpec) -> None:
    begun, go = threading.Event(), threading.Event()

    def wait(job: Job) -> str:
        begun.set()
        assert go.wait(30)
        return "done"

    first = threading.Thread(target=study, args=(make_spec(), tmp_path, MadeUp(wait)))
    first.start()
    try:
        assert begun.wait(30)
        with pytest.raises(StoreError, match="another command is running study s"):
            study(make_spec(), tmp_path, MadeUp())
        other = make_spec(name="other")
        assert study(other, tmp_path, MadeUp()).ran == 9
    finally:
        go.set()
        first.join()
    assert study(make_spec(), tmp_path, MadeUp()).ran == 0


def test_a_data_file_that_has_changed_since_is_refused(tmp_path: Path, make_spec: MakeSpec) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "{i}"}}\n' for i in range(4)))
    data = {"path": str(path), "validation_rows": 1, "test_rows": 1}
    spec = make_spec(controls={"model": {"id": "tiny"}, "data": data})
    study(spec, tmp_path, MadeUp())
    path.write_text(path.read_text().replace("0", "b"))
    with pytest.raises(StoreError, match=r"rows\.jsonl has changed since study s began"):
        study(spec, tmp_path, MadeUp())


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"method": "lorra"}, "arms.a: no 'lorra' in harness.methods; did you mean lora?"),
        ({"quantization": "nf5"}, "arms.a: no 'nf5' in harness.quantization"),
        ({"method": "full", "quantization": "nf4"}, "arms.a: full cannot train a base stored in nf4"),
        ({"params": {"learning_rate": 1e-3, "ranc": 8}}, "ranc is not a parameter of lora on fp32; did you mean rank?"),
        ({"params": {"learning_rate": 1e-3, "rank": 0}}, "params.rank: Input should be greater than 0"),
        ({"search": {"dropout": {"choices": [0, 1]}}},
         "params.dropout: Input should be less than 1"),
        ({"search": {"rank": {"low": 4, "high": 8, "start": [4.5]}}},
         "params.rank: Input should be a valid integer"),
    ],
)  # fmt: skip
def test_an_arm_that_no_trial_could_run_is_refused_before_any_does(
    tmp_path: Path, make_spec: MakeSpec, arm: dict[str, Any], message: str
) -> None:
    arms = {"a": {"method": "lora", "quantization": "fp32", "params": {"learning_rate": 1e-3}, **arm}}
    launcher = MadeUp()
    with pytest.raises((SpecError, PluginError)) as caught:
        study(make_spec(arms=arms), tmp_path, launcher)
    assert message in str(caught.value)
    assert launcher.ran == []


# memory


def above(limit: int, arm: str = "full") -> Ending:
    """Runs of an arm with more sequences per pass than the limit are out of memory."""
    return lambda job: "out_of_memory" if job.trial.arm == arm and job.trial.training.per_pass > limit else "done"


def rungs(outcome: Outcome, arm: str = "full") -> list[tuple[str, int, int, str]]:
    """Phase, seed, micro-batch and status of an arm's runs, in the order in which they ran."""
    mine = [r for r in outcome.records if r.trial.arm == arm]
    return [(r.phase, r.trial.seed, r.trial.training.per_pass, r.status) for r in mine]


def test_out_of_memory_goes_on_at_half_the_micro_batch_and_both_are_kept(tmp_path: Path, make_spec: MakeSpec) -> None:
    outcome = study(make_spec(), tmp_path, MadeUp(above(4)))
    assert rungs(outcome) == [
        ("search", 0, 16, "out_of_memory"),
        ("search", 0, 8, "out_of_memory"),
        ("search", 0, 4, "done"),
        ("search", 0, 4, "done"),  # what is measured once need not be tried again
        ("confirm", 101, 4, "done"),
        ("confirm", 102, 4, "done"),
    ]
    assert {mb for _, _, mb, _ in rungs(outcome, "lora")} == {16}
    assert {r.trial.controls.train.batch for r in outcome.records} == {16}
    tuned = [r for r in outcomes(outcome.records) if r.trial.arm == "full" and r.phase == "search"]
    assert [(r.status, r.trial.params["learning_rate"], r.trial.number) for r in tuned] == [
        ("done", 1e-3, 0),
        ("done", 1e-2, 1),
    ]
    assert outcome.failed == []


def test_a_stopped_study_remembers_what_did_not_fit(tmp_path: Path, make_spec: MakeSpec) -> None:
    whole = study(make_spec(), tmp_path / "whole", MadeUp(above(4)))
    for cut in range(1, 11):
        folder = tmp_path / str(cut)

        def end(job: Job) -> str:
            if len(launcher.ran) == cut:  # noqa: B023
                raise KeyboardInterrupt
            return above(4)(job)

        launcher = MadeUp(end)
        assert study(make_spec(), folder, launcher).interrupted
        if cut % 2:
            (folder / "s" / "search.journal").unlink()
        again = study(make_spec(), folder, MadeUp(above(4)))
        assert [r.trial_id for r in again.records] == [r.trial_id for r in whole.records]
        assert {r.attempt for r in again.records} == {1}
    untouched = MadeUp()
    study(make_spec(), tmp_path / "whole", untouched)
    assert untouched.ran == []


def test_an_arm_for_which_one_sequence_is_too_much_is_out(tmp_path: Path, make_spec: MakeSpec) -> None:
    outcome = study(make_spec(), tmp_path, MadeUp(above(0)))
    assert [mb for _, _, mb, _ in rungs(outcome)] == [16, 8, 4, 2, 1, 1]
    assert {s for _, _, _, s in rungs(outcome)} == {"out_of_memory"}
    assert len(rungs(outcome, "lora")) == 4
    again = MadeUp()
    study(make_spec(), tmp_path, again)
    assert again.ran == []


def test_a_batch_that_cannot_be_halved_takes_the_next_divisor(tmp_path: Path, make_spec: MakeSpec) -> None:
    controls = {"model": {"id": "tiny"}, "data": {"path": "tiny"}, "train": {"batch": 15}}
    outcome = study(make_spec(controls=controls), tmp_path, MadeUp(above(3)))
    assert [mb for _, _, mb, _ in rungs(outcome)][:3] == [15, 5, 1]  # half of 5, and 2 does not divide 15


def test_an_arm_that_ran_out_of_memory_only_once_confirmed_goes_on_too(tmp_path: Path, make_spec: MakeSpec) -> None:
    def end(job: Job) -> str:
        return "done" if job.trial.seed != 102 else above(8)(job)

    outcome = study(make_spec(confirm={"seeds": [101, 102, 103]}), tmp_path, MadeUp(end))
    assert rungs(outcome)[2:] == [
        ("confirm", 101, 16, "done"),
        ("confirm", 102, 16, "out_of_memory"),
        ("confirm", 102, 8, "done"),
        ("confirm", 103, 8, "done"),
    ]
    again = MadeUp()
    study(make_spec(confirm={"seeds": [101, 102, 103]}), tmp_path, again)
    assert again.ran == []  # seed 101 is not asked for again at 8


def test_two_slots_do_not_run_a_seed_at_two_micro_batches(tmp_path: Path, make_spec: MakeSpec) -> None:
    # seed 101 is still running when seed 102 runs out of memory
    waiting = threading.Event()

    def end(job: Job) -> str:
        if job.trial.arm != "full" or job.trial.phase != "confirm":
            return "done"
        if job.trial.seed == 101:
            assert waiting.wait(30)
            return "done"
        if job.trial.training.per_pass == 8:
            waiting.set()
        return above(8)(job)

    outcome = study(make_spec(arms={"full": make_spec().arms["full"].model_dump()}), tmp_path, MadeUp(end, slots=2))
    confirmed = [r for r in rungs(outcome) if r[0] == "confirm"]
    assert sorted(confirmed) == [
        ("confirm", 101, 16, "done"), ("confirm", 102, 8, "done"), ("confirm", 102, 16, "out_of_memory")
    ]  # fmt: skip


def test_out_of_memory_of_an_older_version_stays_the_end_of_its_run(tmp_path: Path, make_spec: MakeSpec) -> None:
    class Older(MadeUp):
        def run(self, job: Job, on_event: Callable[[Event], None]) -> Record:
            record = made_up(job, self.ending(job)).model_copy(update={"schema_version": 1})
            StudyStore(job.folder).write(record)
            return record

    study(make_spec(), tmp_path, Older(above(8)))
    again = MadeUp()
    study(make_spec(), tmp_path, again)
    assert again.ran == []


class Foretold:
    """Forecasts of a card of 100 bytes on which a sequence takes 10 bytes; the bounds are a tenth above and below."""

    def __init__(self, device: str = "card", each: float = 10.0) -> None:
        self.device, self.each = device, each

    def knowing(self, records: Iterable[Record]) -> "Foretold":
        return self

    def trial(self, trial: Trial) -> Forecast:
        need = self.each * trial.training.per_pass * (trial.arm == "full")
        bounds = Interval(low=0.9 * need, mid=need, high=1.1 * need)
        return Forecast(
            allocated_bytes=bounds,
            process_bytes=bounds,
            peak_phase="start of backward",
            device=self.device,
            device_bytes=100 if self.device == "card" else None,
            fits="no" if bounds.low > 100 else "yes",
            seconds=Interval(low=1, mid=2, high=3),
        )


def test_every_record_carries_its_forecast(tmp_path: Path, make_spec: MakeSpec) -> None:
    outcome = study(make_spec(), tmp_path, MadeUp(above(4)), forecaster=Foretold())
    assert all(r.forecast == Foretold().trial(r.trial) for r in outcome.records)
    kept = Store(tmp_path).study("s").records()
    assert [r.forecast for r in kept] == [r.forecast for r in outcome.records]


def test_what_is_forecast_not_to_fit_is_recorded_and_not_run(tmp_path: Path, make_spec: MakeSpec) -> None:
    # 16 sequences take 160 of 100 bytes, 8 take 80
    launcher = MadeUp()
    outcome = study(make_spec(), tmp_path, launcher, forecaster=Foretold())
    assert rungs(outcome)[:2] == [("search", 0, 16, "does_not_fit"), ("search", 0, 8, "done")]
    assert launcher.ran == WHOLE
    (refused,) = [r for r in outcome.records if r.status == "does_not_fit"]
    assert (refused.seconds, refused.log_path) == (0.0, None)
    assert outcome.ran == 9
    again = MadeUp()
    study(make_spec(), tmp_path, again, forecaster=Foretold())
    assert again.ran == []


def test_what_a_refused_run_needs_and_what_comes_next_is_said(tmp_path: Path, make_spec: MakeSpec) -> None:
    gib = float(1 << 30)

    class Large(Foretold):
        def trial(self, trial: Trial) -> Forecast:
            forecast = super().trial(trial)
            return forecast.model_copy(
                update={"device_bytes": 100 * 1 << 30, "fits": "no"} if trial.arm == "full" else {}
            )

    outcome = study(make_spec(), tmp_path, MadeUp(), forecaster=Large(each=20 * gib))
    refused = [r for r in outcome.records if r.status == "does_not_fit"]
    assert refused[0].detail == (
        "needs 320.0 GiB [288.0, 352.0], card has 100.0; nearest: micro_batch 8, tried next, or --run-anyway"
    )
    plan = tmp_path / "s" / "study.yaml"
    assert refused[-1].detail == (
        f"needs 20.0 GiB [18.0, 22.0], card has 100.0; nearest: harness plan {plan}, or --run-anyway"
    )
    assert [mb for _, _, mb, _ in rungs(outcome)] == [16, 8, 4, 2, 1, 1]


def test_what_a_smaller_micro_batch_cannot_mend_is_not_tried_at_one(tmp_path: Path, make_spec: MakeSpec) -> None:
    class Evaluated(Foretold):
        def trial(self, trial: Trial) -> Forecast:
            return super().trial(trial).model_copy(update={"peak_phase": "evaluation"})

    outcome = study(make_spec(), tmp_path, MadeUp(), forecaster=Evaluated())
    assert rungs(outcome) == [("search", 0, 16, "does_not_fit")] * 2


def test_run_anyway_runs_what_is_forecast_not_to_fit_also_later(tmp_path: Path, make_spec: MakeSpec) -> None:
    hopeless = Foretold(each=200)
    first = study(make_spec(), tmp_path, MadeUp(), forecaster=hopeless)
    assert [mb for _, _, mb, _ in rungs(first)] == [16, 8, 4, 2, 1, 1]
    launcher = MadeUp(above(8))
    later = study(make_spec(), tmp_path, launcher, forecaster=hopeless, run_anyway=True)
    assert [r for r in rungs(later) if r[3] != "does_not_fit"] == [
        ("search", 0, 16, "out_of_memory"),
        ("search", 0, 8, "done"),
        ("search", 0, 8, "done"),
        ("confirm", 101, 8, "done"),
        ("confirm", 102, 8, "done"),
    ]
    untouched = MadeUp()
    study(make_spec(), tmp_path, untouched, forecaster=hopeless)
    assert untouched.ran == []
    more = MadeUp()
    study(make_spec(confirm={"seeds": [101, 102, 103]}), tmp_path, more, forecaster=hopeless)
    assert "full confirm 103" in more.ran  # its like has run: that is worth more than a forecast


def test_a_cpu_is_refused_only_what_exceeds_its_memory(tmp_path: Path, make_spec: MakeSpec) -> None:
    launcher = MadeUp()
    study(make_spec(), tmp_path / "small", launcher, forecaster=Foretold("cpu"))
    assert launcher.ran == WHOLE
    outcome = study(make_spec(), tmp_path / "large", MadeUp(), forecaster=Foretold("cpu", each=1e18))
    assert {s for _, _, _, s in rungs(outcome)} == {"does_not_fit"}


def test_a_forecast_that_cannot_be_made_is_said_once_and_stops_nothing(tmp_path: Path, make_spec: MakeSpec) -> None:
    said: list[str] = []

    class Listening(Silent):
        def warned(self, text: str) -> None:
            said.append(text)

    class Lost(Foretold):
        def trial(self, trial: Trial) -> Forecast:
            raise ValueError("no such layer")

    launcher = MadeUp()
    outcome = run_study(make_spec(), Store(tmp_path), launcher, Listening(), forecaster=Lost())
    assert launcher.ran == WHOLE
    assert {r.forecast for r in outcome.records} == {None}
    assert len(said) == 1
    assert said[0].startswith("no forecast for full search")
    assert said[0].endswith("no such layer")


def test_a_run_that_is_done_sharpens_the_forecasts_of_later_ones(tmp_path: Path, make_spec: MakeSpec) -> None:
    class Learning(Foretold):
        def __init__(self, known: int = 0) -> None:
            super().__init__()
            self.known = known

        def knowing(self, records: Iterable[Record]) -> "Learning":
            return Learning(self.known + len(list(records)))

        def trial(self, trial: Trial) -> Forecast:
            return super().trial(trial).model_copy(update={"calibration": f"{self.known} runs"})

    outcome = study(make_spec(), tmp_path, MadeUp(above(4, "lora")), forecaster=Learning())
    known, expected = 0, []
    for record in outcome.records:
        expected.append(f"{known} runs")
        known += record.status == "done"
    assert [r.forecast.calibration for r in outcome.records if r.forecast] == expected
    assert expected[-1] == "8 runs"  # not those that were out of memory


def test_whoever_watches_is_told_first_how_long_runs_are_forecast_to_take(tmp_path: Path, make_spec: MakeSpec) -> None:
    told: list[Mapping[Phase, float]] = []

    class Listening(Silent):
        def begin(self, total: int, done: Sequence[Record], expected: Mapping[Phase, float]) -> None:
            told.append(expected)

    class OfTwoArms(Foretold):
        def trial(self, trial: Trial) -> Forecast:
            seconds = {"full": 2.0, "lora": 4.0}.get(trial.arm, 1.0) * (10 if trial.phase == "confirm" else 1)
            return super().trial(trial).model_copy(update={"seconds": Interval(low=0, mid=seconds, high=99)})

    run_study(make_spec(), Store(tmp_path), MadeUp(), Listening(), forecaster=OfTwoArms())
    run_study(make_spec(), Store(tmp_path), MadeUp(), Listening())
    assert told == [{"search": 3.0, "confirm": 30.0}, {}]
