"""What a study runs after training: which trials, in which order, and what is refused before any runs."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeSpec
from test_study import WHOLE, Foretold, MadeUp, study

from harness import checks, serving
from harness.errors import NotReady, PluginError, SpecError
from harness.interfaces import Job
from harness.record import judged
from harness.spec import StudySpec, load_study
from harness.store import Store
from harness.summary import summarise
from harness.trial import Trial

AT = {"full": {"quantization": "fp32"}, "four": {"quantization": "nf4", "params": {"double_quant": False}}}


@pytest.fixture
def spec(make_spec: MakeSpec) -> StudySpec:
    return make_spec(serve={"at": AT, "speeds": {"batches": [1], "contexts": [8]}})


BASES = ["base@full serve 0", "base@four serve 0"]
SERVED = [
    f"lora@{name}/{way} serve {seed}"
    for seed, name, way in itertools.product((101, 102), ("full", "four"), ("merged", "adapter"))
]
SPEED = ["base@* speed 0"]


def test_a_study_that_serves_nothing_is_the_study_that_it_was(tmp_path: Path, make_spec: MakeSpec) -> None:
    launcher = MadeUp()
    plain, without = make_spec(), make_spec(serve={"arms": ["lora"], "speeds": {}})
    outcome = study(without, tmp_path, launcher)
    assert launcher.ran == WHOLE
    assert without.question_id == plain.question_id
    assert serving.planned(without) == {}
    assert len(outcome.records) == 9


def test_ids_of_trials_do_not_know_of_serving(spec: StudySpec, make_spec: MakeSpec, tmp_path: Path) -> None:
    plain = study(make_spec(), tmp_path / "plain", MadeUp())
    serving_too = study(spec, tmp_path / "served", MadeUp())
    trained = [r.trial_id for r in serving_too.records if r.phase not in {"serve", "speed"}]
    assert trained == [r.trial_id for r in plain.records]
    # as it was before there was anything to serve
    trial = Trial.model_validate(
        {
            "study": "s", "arm": "lora", "phase": "confirm", "seed": 1, "method": "lora", "quantization": "fp32",
            "params": {"learning_rate": 0.001}, "model_digest": "m", "data_digest": "d",
            "controls": {"model": {"id": "tiny"}, "data": {"path": "tiny"}},
        }
    )  # fmt: skip
    assert trial.id == "cdc5e64bf0ec"


def test_what_is_run_after_training_comes_last_base_first_and_speeds_at_the_end(
    tmp_path: Path, spec: StudySpec
) -> None:
    launcher = MadeUp()
    outcome = study(spec, tmp_path, launcher)
    assert launcher.ran == [*WHOLE, *BASES, *SERVED, *SPEED]  # `full` trains no adapter
    assert len({r.trial_id for r in outcome.records}) == len(launcher.ran)


def test_a_served_trial_says_what_it_is_of(tmp_path: Path, spec: StudySpec) -> None:
    outcome = study(spec, tmp_path, MadeUp())
    by_arm = {(r.trial.arm, r.trial.seed): r.trial for r in outcome.records}
    confirmed, served = by_arm["lora", 102], by_arm["lora@four/merged", 102]
    assert served.served is not None
    assert served.served.model_dump() == {
        "name": "four", "quantization": "nf4", "params": {"double_quant": False}, "way": "merged", "of": confirmed.id,
        "against": {"quantization": "fp32", "params": {}},
    }  # fmt: skip
    assert (served.quantization, served.params) == (confirmed.quantization, confirmed.params)
    base = by_arm["base@four", 0]
    assert (base.method, base.quantization, base.params) == ("none", "nf4", {"double_quant": False})
    assert base.served is not None
    assert base.served.of is None


@pytest.mark.parametrize(
    ("serve", "ran"),
    [
        ({"at": AT, "base": False, "ways": ["adapter"]}, [s for s in SERVED if "adapter" in s]),
        ({"at": AT, "arms": []}, BASES),
        ({"at": {"full": AT["full"]}, "arms": ["lora"], "ways": ["merged"]},
         [BASES[0], *[s for s in SERVED if "full/merged" in s]]),
    ],
)  # fmt: skip
def test_the_study_says_what_is_served(
    tmp_path: Path, make_spec: MakeSpec, serve: dict[str, Any], ran: list[str]
) -> None:
    launcher = MadeUp()
    made = make_spec(serve=serve)
    study(made, tmp_path, launcher)
    assert launcher.ran == [*WHOLE, *ran]
    assert sum(serving.planned(made).values()) == len(ran)


def test_an_arm_on_a_quantized_base_is_served_only_when_it_is_named(make_spec: MakeSpec) -> None:
    arms = {
        name: {"method": "lora", "quantization": name, "params": {"learning_rate": 1e-3}}
        for name in ("fp32", "bf16", "int8", "nf4")
    }
    assert serving.served_arms(make_spec(arms=arms, serve={"at": AT})) == ["fp32", "bf16"]
    assert serving.served_arms(make_spec(arms=arms, serve={"at": AT, "arms": ["nf4"]})) == ["nf4"]


@pytest.mark.parametrize("cut", range(9, 20, 2))
def test_a_study_stopped_while_serving_goes_on_to_the_same_trials(tmp_path: Path, spec: StudySpec, cut: int) -> None:
    def end(job: Job) -> str:
        if len(launcher.ran) == cut:
            raise KeyboardInterrupt
        return "done"

    whole = [*WHOLE, *BASES, *SERVED, *SPEED]
    launcher = MadeUp(end)
    assert study(spec, tmp_path / "cut", launcher).interrupted
    again = MadeUp()
    outcome = study(spec, tmp_path / "cut", again)
    assert [*launcher.ran, *again.ran] == whole
    undisturbed = study(spec, tmp_path / "whole", MadeUp())
    assert [r.trial_id for r in outcome.records] == [r.trial_id for r in undisturbed.records]
    untouched = MadeUp()
    study(spec, tmp_path / "cut", untouched)
    assert untouched.ran == []


def test_two_slots_serve_the_same_trials_and_nothing_runs_beside_the_one_that_times(
    tmp_path: Path, spec: StudySpec
) -> None:
    import threading

    running: set[str] = set()
    beside: list[set[str]] = []
    lock = threading.Lock()

    def end(job: Job) -> str:
        with lock:
            running.add(job.trial.id)
            if job.trial.phase == "speed":
                beside.append(running - {job.trial.id})
        threading.Event().wait(0.01)
        with lock:
            running.discard(job.trial.id)
        return "done"

    two = study(spec, tmp_path / "two", MadeUp(end, slots=2))
    one = study(spec, tmp_path / "one", MadeUp())
    assert {r.trial_id for r in two.records} == {r.trial_id for r in one.records}
    assert beside == [set()]


def test_only_runs_that_are_done_are_served(tmp_path: Path, spec: StudySpec) -> None:
    launcher = MadeUp(lambda job: "diverged" if (job.trial.arm, job.trial.seed) == ("lora", 101) else "done")
    study(spec, tmp_path, launcher)
    assert launcher.ran == [*WHOLE, *BASES, *[s for s in SERVED if s.endswith("102")], *SPEED]


def test_what_an_early_look_left_out_is_not_served(
    tmp_path: Path, spec: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirm = spec.confirm.model_copy(update={"seeds": [101, 102, 103, 104], "looks": [2, 4]})
    monkeypatch.setattr("harness.study.settled", lambda evidence: True)  # made-up runs have no items to compare
    launcher = MadeUp()
    study(spec.model_copy(update={"confirm": confirm}), tmp_path, launcher)
    assert launcher.ran == [*WHOLE, *BASES, *SERVED, *SPEED]


def test_served_trials_end_and_run_again_like_others(tmp_path: Path, spec: StudySpec) -> None:
    def end(job: Job) -> str:
        trial = job.trial
        if trial.arm == "base@four":
            return "failed"
        if trial.arm == "lora@full/merged":
            return "out_of_memory"
        return "killed" if trial.phase == "speed" and job.attempt == 1 else "done"

    outcome = study(spec, tmp_path, MadeUp(end))
    ends = {(r.trial.arm, r.trial.seed): (r.status, r.attempt) for r in outcome.records}
    assert ends["base@four", 0] == ("failed", 1)
    assert ends["base@*", 0] == ("done", 2)
    # evaluated as it is, with no micro-batch to make smaller: out of memory is the end of it
    assert ends["lora@full/merged", 101] == ("out_of_memory", 1)
    assert [r.trial.arm for r in outcome.failed] == ["base@four"]
    again = MadeUp()
    assert study(spec, tmp_path, again, retry_failed=True).failed == []
    assert again.ran == ["base@four serve 0"]


def test_serving_changes_nothing_of_what_is_judged(tmp_path: Path, spec: StudySpec, make_spec: MakeSpec) -> None:
    served = study(spec, tmp_path / "served", MadeUp())
    plain = study(make_spec(), tmp_path / "plain", MadeUp())
    assert [r.trial_id for r in judged(served.records)] == [r.trial_id for r in judged(plain.records)]
    two = [summarise(Store(tmp_path / name).study("s")) for name in ("served", "plain")]
    for summary in two:
        assert [a.statuses for a in summary.arms] == [{"done": 4}] * 2
    assert two[0].sentence == two[1].sentence
    assert two[0].caveats == two[1].caveats


def test_more_seeds_add_the_served_runs_of_those_seeds(tmp_path: Path, spec: StudySpec) -> None:
    study(spec, tmp_path, MadeUp())
    more = spec.model_copy(update={"confirm": spec.confirm.model_copy(update={"seeds": [101, 102, 103]})})
    launcher = MadeUp()
    study(more, tmp_path, launcher)
    assert launcher.ran == ["full confirm 103", "lora confirm 103", *[s[:-1] + "3" for s in SERVED if s[-1] == "2"]]


def test_progress_counts_what_is_served(tmp_path: Path, spec: StudySpec) -> None:
    from harness.cli._progress import Clock

    assert sum(Clock(spec, 1).left.values()) == len(WHOLE) + len(BASES) + len(SERVED) + len(SPEED)
    clock = Clock(spec, 1)
    for record in study(spec, tmp_path, MadeUp()).records:
        clock.add(record)
    assert set(clock.left.values()) == {0}


def test_served_trials_are_forecast_and_speeds_are_not(tmp_path: Path, spec: StudySpec) -> None:
    outcome = study(spec, tmp_path, MadeUp(), forecaster=Foretold(each=1))
    assert {r.phase for r in outcome.records if r.forecast is None} == {"speed"}


@pytest.mark.parametrize(
    ("serve", "message"),
    [
        ({"at": {"a": {"quantization": "nf44"}}}, "serve.at.a: no 'nf44' in harness.quantization; did you mean nf4?"),
        ({"at": {"a": {"quantization": "nf4", "params": {"double_quants": True}}}},
         "serve.at.a: double_quants is not a parameter of nf4; did you mean double_quant?"),
        ({"at": {"a": {"quantization": "fp32", "params": {"learning_rate": 1}}}},
         "serve.at.a: learning_rate is not a parameter of fp32; it has none"),
        ({"at": {"a": {"quantization": "int8", "params": {"threshold": -1}}}}, "serve.at.a: params.threshold: Input"),
        ({"at": {"four": AT["four"], "full": AT["full"]}},
         "serve.at: full has more bits than four, which the others are compared with"),
        ({"at": AT, "arms": ["full"]}, "serve.arms: full (full) trains no adapter"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_before_anything_runs(
    tmp_path: Path, make_spec: MakeSpec, serve: dict[str, Any], message: str
) -> None:
    launcher = MadeUp()
    with pytest.raises((SpecError, PluginError)) as caught:
        study(make_spec(serve=serve), tmp_path, launcher)
    assert message in str(caught.value)
    assert launcher.ran == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("serve.arms=[lorra]", "serve.arms: 'lorra' is not an arm; did you mean lora?"),
        ("serve.at={a.b: {quantization: nf4}}", "serve: at: 'a.b' cannot name a bit-width"),
        ("serve.at={a: {quantisation: nf4}}", "serve.at.a.quantisation is not a key; did you mean quantization?"),
        ("serve.speeds.batchs=[1]", "serve.speeds.batchs is not a key; did you mean batches?"),
        ("serve.ways=[merged, merged]", "the same way twice"),
        ("serve.ways=[beside]", "serve.ways.0: should be 'merged' or 'adapter', got 'beside'"),
        ("batches=[1]", "batches is not a key; did you mean serve.speeds.batches?"),
    ],
)
def test_a_mistake_in_serve_is_named_with_what_would_be_right(tmp_path: Path, override: str, message: str) -> None:
    from harness.spec import dump_study

    path = tmp_path / "s.yaml"
    arm = {"method": "lora", "quantization": "fp32", "params": {"learning_rate": 1e-3}}
    controls = {"model": {"id": "tiny"}, "data": {"path": "tiny"}}
    path.write_text(dump_study(StudySpec.model_validate({"name": "s", "controls": controls, "arms": {"lora": arm}})))
    with pytest.raises(SpecError) as caught:
        load_study(path, [override])
    assert message in str(caught.value)


def test_what_a_served_bit_width_needs_is_looked_for_before_anything_runs(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness import plugins

    class OnlyOnGpus:
        bits = 4.0
        needs = "cuda"
        packages = ("a_package_that_is_not_there",)
        params = plugins.quantization("fp32").params

    find = plugins.quantization
    monkeypatch.setattr(plugins, "quantization", lambda name: OnlyOnGpus() if name == "marlin" else find(name))
    monkeypatch.setattr("harness.environment.gpus", list)
    at = {"full": AT["full"], "fast": {"quantization": "marlin"}}
    with pytest.raises(NotReady) as caught:
        checks.require(make_spec(serve={"at": at}))
    assert "missing packages: a_package_that_is_not_there" in caught.value.message
    assert "one is needed: marlin runs on CUDA only" in caught.value.message
