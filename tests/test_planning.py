"""Forecasts of trials, plans of studies, and how good forecasts were."""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeRecord, MakeSpec

from harness import budget, scoring, serving
from harness.budget import detectable, nearest, plan, trial_of
from harness.forecast import catalogue, processors
from harness.forecast.memory import Memory
from harness.forecast.processors import Processor
from harness.forecast.setup import HARNESS, Setup
from harness.intervals import Difference, Spread
from harness.planning import HEADROOM, USUAL_SCATTER, Forecaster, _rates_of, fits
from harness.record import Fit, Forecast, Interval, Record, Stage, TensorBytes, Training
from harness.spec import StudySpec
from harness.trial import Trial

GIB = 1 << 30
LLAMA = {
    "model": {"id": "meta-llama/Llama-2-7b-hf"},
    "data": {"path": "timdettmers/openassistant-guanaco"},
    "train": {"batch": 16, "micro_batch": 4, "max_length": 512, "compute_dtype": "bf16"},
    "evaluate": {"batch": 4, "tasks": []},
}
RATE = {"params": {"learning_rate": 1e-4}}


def llama(make_spec: MakeSpec, **sections: Any) -> StudySpec:
    """Full fine-tuning and LoRA of Llama 2 7B, with a learning rate each and nothing searched."""
    arms = {
        "full": {"method": "full", "quantization": "bf16", **RATE},
        "lora": {"method": "lora", "quantization": "bf16", "params": {"learning_rate": 1e-4, "rank": 16}},
        "qlora": {"method": "lora", "quantization": "nf4", "params": {"learning_rate": 1e-4, "rank": 16}},
    }
    controls = {k: {**LLAMA[k], **sections.get("controls", {}).get(k, {})} for k in LLAMA}
    return make_spec(**{"arms": arms, **sections, "controls": controls})


def card(gibibytes: float, **changes: Any) -> Processor:
    return processors.find("A100-80GB").model_copy(update={"memory_bytes": round(gibibytes * GIB), **changes})


def around(mid: float, share: float = 0.1) -> Interval:
    return Interval(low=mid * (1 - share), mid=mid, high=mid * (1 + share))


@pytest.fixture
def spec(make_spec: MakeSpec) -> StudySpec:
    return llama(make_spec)


def test_a_trial_is_forecast_as_its_plugins_set_it_up(spec: StudySpec) -> None:
    forecaster = Forecaster(spec, card(80))
    full, qlora = (forecaster.setup(trial_of(spec, name, "search")) for name in ("full", "qlora"))
    assert full.full and full.adapter is None and full.weight_bits == 16 and not full.quantized
    assert not qlora.full and qlora.adapter is not None and qlora.adapter.rank == 16
    assert qlora.quantized and qlora.weight_bits == pytest.approx(4.127, abs=0.001)
    assert (qlora.micro_batch, qlora.accumulation, qlora.length) == (4, 4, 512)


def test_a_trial_at_a_smaller_micro_batch_is_forecast_at_that(spec: StudySpec) -> None:
    forecaster = Forecaster(spec, card(80))
    trial = trial_of(spec, "lora", "search")
    smaller = trial.at(1)
    assert forecaster.setup(smaller).accumulation == 16
    assert forecaster.trial(smaller).allocated_bytes.mid < forecaster.trial(trial).allocated_bytes.mid


def test_fewer_bits_and_fewer_trained_weights_need_less_memory(spec: StudySpec) -> None:
    forecaster = Forecaster(spec, card(80))
    full, lora, qlora = (forecaster.trial(trial_of(spec, name, "search")).allocated_bytes.mid for name in spec.arms)
    assert full > 3 * lora / 1.5 > 1.5 * qlora


def test_the_components_add_up_to_the_middle_of_what_is_allocated(spec: StudySpec) -> None:
    forecaster = Forecaster(spec, card(80))
    for name in spec.arms:
        forecast = forecaster.trial(trial_of(spec, name, "confirm"))
        assert sum(forecast.components.values()) == forecast.allocated_bytes.mid
        assert 0 not in forecast.components.values()


def test_the_seconds_of_a_trial_are_those_of_its_stages(spec: StudySpec) -> None:
    forecaster = Forecaster(spec, card(80))
    stages = {phase: forecaster.trial(trial_of(spec, "lora", phase)) for phase in ("baseline", "search", "confirm")}
    assert list(stages["baseline"].stage_seconds) == ["load", "adapt", "evaluate"]
    assert list(stages["search"].stage_seconds) == ["load", "adapt", "train", "evaluate"]
    assert list(stages["confirm"].stage_seconds) == ["load", "adapt", "train", "evaluate", "save", "reference"]
    for forecast in stages.values():
        assert forecast.seconds.mid == pytest.approx(sum(s.mid for s in forecast.stage_seconds.values()))
    # judged runs are asked the test rows too: twice as many
    search, confirm = (stages[p].stage_seconds["evaluate"].mid for p in ("search", "confirm"))
    assert confirm == pytest.approx(2 * search, rel=0.01)


def test_the_base_before_training_has_no_step_to_account_for(spec: StudySpec) -> None:
    forecast = Forecaster(spec, card(80)).trial(trial_of(spec, "full", "baseline"))
    assert forecast.tensors is None and forecast.tokens_per_second is None
    assert forecast.peak_phase == "evaluation"


def test_a_large_batch_of_evaluation_can_be_what_does_not_fit(make_spec: MakeSpec) -> None:
    # 512 rows of 512 tokens: 16.8 GB of 16-bit logits, and a layer's MLP alone is 3 * 11,008 values of 2 bytes a token
    spec = llama(make_spec, controls={"evaluate": {"batch": 512}, "train": {"gradient_checkpointing": True}})
    forecast = Forecaster(spec, card(24)).trial(trial_of(spec, "lora", "search"))
    assert forecast.peak_phase == "evaluation"
    assert forecast.allocated_bytes.mid > 13.4e9 + 512 * 512 * 3 * 11_008 * 2
    assert forecast.fits == "no"


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_the_held_out_loss_takes_as_many_bytes_per_logit_as_is_forecast(compute: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from harness import accounting, tiny
    from harness.data import IGNORED, Tokens
    from harness.evaluate import held_out_loss

    batch, length, vocabulary = 16, 64, 1024
    ids = list(range(5, 5 + length))
    rows = [Tokens(str(i), ids, [IGNORED, *ids[1:]]) for i in range(batch)]
    model = AutoModelForCausalLM.from_pretrained(tiny.MODEL, dtype=torch.float32)

    def evaluate() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=compute == "bf16"):
            held_out_loss(model, rows, "loss", batch, 0)

    evaluate()  # first touches are not the loss's
    peak = accounting.step_peak(evaluate, torch.device("cpu"))
    from harness.forecast import activations

    width, row = (2, 8) if compute == "bf16" else (4, 4)
    loss = (width * batch + row) * length * vocabulary
    setup = Setup(
        architecture=catalogue.find("tiny"), full=False, weight_bits=32, compute=compute,  # type: ignore[arg-type]
        micro_batch=batch, length=length, padded=False, loss="chunked",
        profile=HARNESS.model_copy(update={"autocast": compute == "bf16"}),
    )  # fmt: skip
    assert peak == pytest.approx(max(loss, activations.forward_peak(setup)), rel=0.03)


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        ((60, 70, 76), "yes"),  # all of it below 95 % of 80
        ((60, 75, 79), "likely"),
        ((70, 78, 85), "uncertain"),
        ((81, 85, 90), "no"),
    ],
)
def test_whether_it_fits_is_read_off_the_interval_of_the_process(
    process: tuple[float, float, float], expected: Fit
) -> None:
    low, mid, high = (x * GIB for x in process)
    interval = Interval(low=low, mid=mid, high=high)
    assert fits(card(80), Memory(phases=(), reserved=interval, process=interval)) == expected


def test_on_a_cpu_there_is_no_card_and_nothing_is_reserved(make_spec: MakeSpec) -> None:
    spec = make_spec()
    forecast = Forecaster(spec, processors.find("cpu")).trial(trial_of(spec, "lora", "search"))
    assert forecast.reserved_bytes is None and forecast.process_bytes is None and forecast.device_bytes is None
    assert forecast.fits == "yes"
    assert forecast.tensors is not None and forecast.allocated_bytes.mid == forecast.tensors.peak


def test_money_is_the_studys_price_else_the_tables(make_spec: MakeSpec) -> None:
    own = llama(make_spec, prices={"per_hour": 3.6})
    rented = card(80, per_hour=7.2)
    for spec, price in ((own, 3.6), (llama(make_spec), 7.2)):
        forecast = Forecaster(spec, rented).trial(trial_of(spec, "lora", "search"))
        assert forecast.cost is not None
        assert forecast.cost.mid == pytest.approx(forecast.seconds.mid / 3600 * price)
    unpriced = llama(make_spec)
    assert Forecaster(unpriced, card(80, per_hour=None)).trial(trial_of(unpriced, "lora", "search")).cost is None


def measured(
    make_record: MakeRecord, trial: Trial, seconds: float, gpu: str = "NVIDIA A100-SXM4-80GB", **changes: Any
) -> Record:
    """A run of this trial whose steps took `seconds` each, on batches of rows without padding."""
    train = Training(
        steps=100, tokens=100 * 16 * 512, padded_share=0.0, tokens_per_second=16 * 512 / seconds,
        warmup_steps_excluded=0,
        loop_seconds=100 * seconds, final_loss=1.0, trainable_parameters=1, total_parameters=1,
    )  # fmt: skip
    environment = {"gpus": [{"name": gpu}], "packages": {"torch": "2.13.0"}}
    made = make_record(**{"train": train, "environment": environment, "stages": [], **changes})
    return made.model_copy(update={"trial": trial, "trial_id": trial.id})


def step_seconds(forecaster: Forecaster, trial: Trial) -> float:
    tokens = forecaster.trial(trial).tokens_per_second
    assert tokens is not None
    return 16 * 512 / tokens


def test_measured_runs_on_such_a_processor_sharpen_the_time(spec: StudySpec, make_record: MakeRecord) -> None:
    trial = trial_of(spec, "lora", "search")
    cold = Forecaster(spec, card(80))
    before = step_seconds(cold, trial)
    runs = [measured(make_record, trial_of(spec, "lora", "search", seed), 1.5 * before) for seed in range(4)]
    sharpened = Forecaster(spec, card(80), runs)
    assert step_seconds(sharpened, trial) == pytest.approx(1.5 * before, rel=0.05)
    assert sharpened.trial(trial).calibration == "4 runs on A100-80GB"
    old, new = (f.trial(trial).stage_seconds["train"] for f in (cold, sharpened))
    assert new.high / new.low < old.high / old.low
    others = sharpened.trial(trial_of(spec, "qlora", "search"))
    assert others.calibration == "4 runs on A100-80GB of other arms"


def test_runs_on_another_gpu_or_of_another_model_say_nothing(spec: StudySpec, make_record: MakeRecord) -> None:
    trial = trial_of(spec, "lora", "search")
    other = trial.model_copy(update={"controls": trial.controls.model_copy(update={"model": {"id": "tiny"}})})
    elsewhere = measured(make_record, trial, 99.0, gpu="NVIDIA H100 80GB HBM3")
    failed = measured(make_record, trial, 99.0, status="failed")
    forecaster = Forecaster(spec, card(80), [elsewhere, failed])
    assert forecaster.trial(trial).calibration == "cold"
    assert other.controls.model != trial.controls.model


def test_runs_of_older_software_give_way_to_newer_ones(spec: StudySpec, make_record: MakeRecord) -> None:
    trial = trial_of(spec, "lora", "search")
    old = measured(make_record, trial, 99.0, environment={"gpus": [{"name": "A100-80GB"}], "packages": {"torch": "1"}})
    new = measured(make_record, trial_of(spec, "lora", "search", 1), 5.0, started_at=datetime(2026, 5, 1, tzinfo=UTC))
    assert Forecaster(spec, card(80), [old, new]).trial(trial).calibration == "1 run on A100-80GB"


def test_other_stages_take_what_runs_of_the_phase_measured(spec: StudySpec, make_record: MakeRecord) -> None:
    trial = trial_of(spec, "lora", "search")
    stages = [Stage(stage="load", seconds=100.0), Stage(stage="evaluate", seconds=1000.0)]
    forecaster = Forecaster(spec, card(80), [measured(make_record, trial, 5.0, stages=stages)])
    found = forecaster.trial(trial).stage_seconds
    assert found["load"].mid == pytest.approx(100) and found["evaluate"].mid == pytest.approx(1000)
    # a confirmed run loads the same, and is asked something else
    confirm = forecaster.trial(trial_of(spec, "lora", "confirm")).stage_seconds
    assert confirm["load"].mid == pytest.approx(100) and confirm["evaluate"].mid < 1000


def test_a_run_that_keeps_nothing_does_not_say_how_long_keeping_takes(spec: StudySpec, make_record: MakeRecord) -> None:
    # full fine-tuning keeps the model of its first seed only; the stage is there all the same
    full = trial_of(spec, "full", "confirm", 102).model_copy(update={"keep_model": False})
    run = measured(make_record, full, 5.0, stages=[Stage(stage="save", seconds=0.02)])
    trial = trial_of(spec, "lora", "confirm")
    saving = [f.trial(trial).stage_seconds["save"] for f in (Forecaster(spec, card(80), r) for r in ([], [run]))]
    assert saving[0] == saving[1]


def test_further_runs_are_learned_from_as_if_they_had_been_known(spec: StudySpec, make_record: MakeRecord) -> None:
    trial = trial_of(spec, "lora", "search")
    runs = [measured(make_record, trial_of(spec, "lora", "search", seed), 5.0 + seed) for seed in range(3)]
    lost = measured(make_record, trial, 99.0, status="failed")
    cold = Forecaster(spec, card(80))
    before = cold.trial(trial)
    learned = cold.knowing(runs[:1]).knowing([*runs[1:], lost])
    assert learned.trial(trial) == Forecaster(spec, card(80), runs).trial(trial) != before
    assert cold.trial(trial) == before


def test_a_plan_is_the_sum_of_its_runs(spec: StudySpec) -> None:
    forecaster, found = Forecaster(spec, card(80)), plan(spec, card(80))
    assert [(a.arm, a.trials, a.seeds, a.confirm.fits) for a in found.arms] == [
        ("full", 2, 2, "yes"), ("lora", 2, 2, "yes"), ("qlora", 2, 2, "yes"),
    ]  # fmt: skip
    assert found.runs == 1 + 3 * (2 + 2)
    lora = found.arms[1]
    assert lora.seconds.mid == 2 * lora.search.seconds.mid + 2 * lora.confirm.seconds.mid
    assert found.seconds.mid == pytest.approx(found.baseline.seconds.mid + sum(a.seconds.mid for a in found.arms))
    # an adapter of each seed, and one whole model of bf16 weights
    parameters = forecaster.architecture.parameters
    setup = forecaster.setup(trial_of(spec, "lora", "search"))
    assert [a.disk_bytes for a in found.arms[:2]] == [2 * parameters, 2 * 4 * setup.adapter_parameters]


def test_an_arm_that_does_not_fit_takes_no_time_and_the_card_that_holds_it_is_named(make_spec: MakeSpec) -> None:
    spec = llama(make_spec, controls={"train": {"gradient_checkpointing": True}})
    found = plan(spec, card(24))
    full = found.arms[0]
    assert full.confirm.fits == "no" and full.seconds.mid == 0 and full.disk_bytes == 0
    assert full.nearest is None  # its weights and their gradients alone are 27 GB
    assert full.cheapest_card is not None
    held = processors.find(full.cheapest_card)
    assert plan(spec, held).arms[0].confirm.fits in {"yes", "likely"}
    assert found.runs == 1 + 2 * 4


def test_an_arm_is_planned_at_the_micro_batch_that_the_study_will_go_on_at(make_spec: MakeSpec) -> None:
    spec = llama(make_spec, controls={"evaluate": {"batch": 1}})
    forecaster = Forecaster(spec, card(80, memory_bytes=None))
    needed = forecaster.memory(trial_of(spec, "lora", "confirm").at(2)).process.mid
    lora = plan(spec, card(1.001 * needed / GIB / HEADROOM)).arms[1]
    assert (lora.micro_batch, lora.confirm.fits, lora.nearest) == (2, "likely", None)
    assert lora.refused is not None and lora.refused.fits == "no"
    assert lora.refused.allocated_bytes.mid > lora.confirm.allocated_bytes.mid
    assert lora.seconds.mid > 0


MICRO = "controls.train.micro_batch"
CHECKPOINTING = "controls.train.gradient_checkpointing=true"


@pytest.mark.parametrize(
    ("train", "quantization", "overrides"),
    [
        ({"micro_batch": 2}, "bf16", (f"{MICRO}=2",)),
        ({"micro_batch": 1}, "bf16", (f"{MICRO}=1",)),
        ({"gradient_checkpointing": True}, "bf16", (CHECKPOINTING,)),
        ({"micro_batch": 2, "gradient_checkpointing": True}, "bf16", (f"{MICRO}=2", CHECKPOINTING)),
        ({"gradient_checkpointing": True}, "int8", (CHECKPOINTING, "arms.lora.quantization=int8")),
    ],
)
def test_the_nearest_change_that_fits_is_the_least_of_them(
    make_spec: MakeSpec, train: dict[str, Any], quantization: str, overrides: tuple[str, ...]
) -> None:
    spec = llama(make_spec, controls={"evaluate": {"batch": 1}})
    # a card on which the changed run is just likely to fit
    trial = trial_of(spec, "lora", "confirm")
    changed = trial.controls.model_copy(update={"train": trial.controls.train.model_copy(update=train)})
    wanted = trial.model_copy(update={"controls": changed, "quantization": quantization})
    needed = Forecaster(spec, card(80, memory_bytes=None)).memory(wanted).process.mid
    forecaster = Forecaster(spec, card(1.001 * needed / GIB / HEADROOM))
    assert fits(forecaster.processor, forecaster.memory(trial)) not in {"yes", "likely"}
    found = nearest(forecaster, "lora")
    assert found is not None
    assert found.forecast.fits in {"yes", "likely"}
    assert set(found.overrides) == set(overrides)


def test_a_smaller_batch_of_evaluation_comes_first_for_it_changes_no_result(make_spec: MakeSpec) -> None:
    spec = llama(make_spec, controls={"evaluate": {"batch": 64}, "train": {"gradient_checkpointing": True}})
    found = nearest(Forecaster(spec, card(24)), "lora")
    assert found is not None
    assert found.overrides == ("controls.evaluate.batch=32",)


def test_parameters_of_the_old_quantization_are_taken_away_with_it(make_spec: MakeSpec) -> None:
    arms = {"lora": {"method": "lora", "quantization": "int8", "params": {"learning_rate": 1e-4, "threshold": 5.0}}}
    controls = {"train": {"micro_batch": 1, "gradient_checkpointing": True}, "evaluate": {"batch": 1}}
    found = nearest(Forecaster(llama(make_spec, arms=arms, controls=controls), card(7)), "lora")
    assert found is not None
    assert found.overrides == ("arms.lora.quantization=nf4", "arms.lora.params.threshold=null")


def test_a_searched_rank_is_planned_at_its_largest(make_spec: MakeSpec) -> None:
    searched = {
        "rank": {"low": 4, "high": 64},
        "dora": {"choices": [False, True]},
        "learning_rate": {"choices": [1e-4]},
    }
    spec = llama(make_spec, arms={"lora": {"method": "lora", "quantization": "bf16", "search": searched}})
    assert budget.largest(spec.arms["lora"]) == {"rank": 64, "dora": True, "learning_rate": 1e-4}
    adapter = Forecaster(spec, card(80)).setup(trial_of(spec, "lora", "search")).adapter
    assert adapter is not None and adapter.rank == 64 and adapter.dora


def test_a_time_limit_that_runs_will_not_keep_is_told_beforehand(make_spec: MakeSpec) -> None:
    def told(minutes: float) -> bool:
        found = plan(llama(make_spec, limits={"trial_minutes": minutes}), card(80))
        return any("limits.trial_minutes" in doubt for doubt in found.doubts)

    assert told(0.1) and not told(10_000)


def test_what_has_to_be_downloaded_is_told_unless_it_is_here(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    spec = llama(make_spec)
    assert plan(spec, card(80)).download_bytes == 2 * 6_738_415_616  # two bytes for each weight of Llama 2 7B
    folder = tmp_path / "models--meta-llama--Llama-2-7b-hf" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    (folder.parent.parent / "refs").mkdir()
    (folder.parent.parent / "refs" / "main").write_text("abc")
    assert plan(spec, card(80)).download_bytes == 0
    assert plan(make_spec(), processors.find("cpu")).download_bytes == 0


def test_more_seeds_and_items_show_smaller_differences(make_spec: MakeSpec) -> None:
    def smallest(seeds: int, task: str) -> float | None:
        return detectable(
            llama(
                make_spec,
                controls={"evaluate": {"tasks": [task]}},
                confirm={"seeds": list(range(101, 101 + seeds))},
                objective={"metric": f"{task}/acc"},
            )
        ).difference

    few, more, most = smallest(2, "piqa"), smallest(5, "piqa"), smallest(5, "hellaswag")
    assert few is not None and more is not None and most is not None
    assert few > more > most > 0
    assert smallest(1, "piqa") is None


def test_the_smallest_difference_includes_the_margin_and_uses_measured_noise(make_spec: MakeSpec) -> None:
    sections = {"controls": {"evaluate": {"tasks": ["piqa"]}}}
    without, with_margin = (
        detectable(llama(make_spec, objective={"metric": "piqa/acc", "margin": margin}, **sections))
        for margin in (0.0, 0.02)
    )
    assert without.difference is not None and with_margin.difference == pytest.approx(without.difference + 0.02)
    quiet = Spread(2, 1e-8, 1e-8)
    found = detectable(llama(make_spec, **sections), [Difference(0.0, quiet, quiet, 1838, 1838, 1e-8)])
    assert found.difference is not None and found.difference < without.difference
    assert "2 confirmed seeds so far" in found.basis


def test_nothing_is_assumed_of_the_spread_of_a_loss(spec: StudySpec) -> None:
    found = detectable(spec)
    assert found.metric == "test_loss" and found.difference is None


def forecast(**changes: Any) -> Forecast:
    values: dict[str, Any] = {
        "allocated_bytes": around(100), "peak_phase": "optimizer step", "device": "cpu", "fits": "yes",
        "seconds": around(10), "stage_seconds": {"train": around(10)},
    }  # fmt: skip
    return Forecast.model_validate(values | changes)


def test_errors_are_shares_of_what_was_measured(make_record: MakeRecord) -> None:
    # forecast 10 s; measured 8 and 12.5 s: off by +25 % and -20 %, both outside of 9 to 11
    records = [
        make_record(forecast=forecast(), memory=None, seconds=s, stages=[Stage(stage="train", seconds=s)])
        for s in (8.0, 12.5)
    ]
    found = scoring.score(records)
    train = next(e for e in found.time if e.quantity == "train")
    assert (train.n, train.mape, train.worst, train.coverage) == (2, pytest.approx(0.225), pytest.approx(0.25), 0.0)
    assert train.median == pytest.approx(0.025)
    assert train.p95 == pytest.approx(0.2475)  # 95 % of the way from 0.20 to 0.25
    assert found.memory == ()
    inside = scoring.score([make_record(forecast=forecast(), seconds=10.5, stages=[])])
    assert inside.time[0].quantity == "all stages" and inside.time[0].coverage == 1.0


def test_each_kind_of_memory_is_scored_against_its_own_measurement(make_record: MakeRecord) -> None:
    stages = [
        Stage(stage="load", seconds=5, allocated_peak_bytes=50, reserved_peak_bytes=60, device_peak_bytes=500),
        Stage(stage="train", seconds=5, allocated_peak_bytes=125, reserved_peak_bytes=200, device_peak_bytes=400),
    ]
    made = forecast(
        reserved_bytes=around(200),
        process_bytes=around(400),
        tensors=TensorBytes(weights=400, adapter=40, gradients=40, optimizer=80, step_peak=200),
    )
    found = scoring.score([make_record(forecast=made, stages=stages)])
    errors = {e.quantity: (round(e.mape, 6), e.coverage) for e in found.memory}
    assert errors == {"tensors": (0, None), "allocated": (0.2, 0.0), "reserved": (0, 1.0), "process": (0.2, 0.0)}


@pytest.mark.parametrize(
    ("forecast_fits", "status", "expected"),
    [
        ("yes", "done", "right"), ("likely", "done", "right"), ("no", "out_of_memory", "right"),
        ("yes", "out_of_memory", "wrong"), ("no", "done", "wrong"), ("uncertain", "done", "open"),
        ("no", "does_not_fit", "none"), ("yes", "failed", "none"),
    ],
)  # fmt: skip
def test_a_verdict_of_fit_is_judged_by_how_the_run_ended(
    make_record: MakeRecord, forecast_fits: str, status: str, expected: str
) -> None:
    assert scoring.verdict(make_record(status=status, forecast=forecast(fits=forecast_fits))) == expected


def test_what_cannot_be_scored_is_counted_with_the_reason(make_record: MakeRecord) -> None:
    records = [
        make_record(forecast=None),
        make_record(forecast=forecast(fits="no"), status="does_not_fit"),
        make_record(forecast=forecast(), status="diverged"),
        make_record(forecast=forecast(), status="done", stages=[Stage(stage="load", seconds=0.01)]),
    ]
    found = scoring.score(records)
    assert found.records == 4
    assert found.unscored == {
        "no forecast": 1,
        "not run: forecast not to fit": 1,
        "diverged: no whole measurement": 1,
    }
    assert found.short_stages == 1
    assert found.fits_share == 1.0


def test_two_runs_that_happen_to_agree_do_not_promise_the_third() -> None:
    agreeing = _rates_of([math.log(2), math.log(2)], "2 runs")
    assert agreeing.factor == pytest.approx(2)
    # three runs' worth of the usual scatter over 3 + 2 - 1, and the mean of two may be off too
    assert agreeing.spread == pytest.approx(1.645 * math.sqrt(3 * USUAL_SCATTER**2 / 4 * 1.5))
    apart = _rates_of([math.log(2), math.log(8)], "2 runs")
    assert apart.factor == pytest.approx(4)
    assert apart.spread == pytest.approx(1.645 * math.sqrt((3 * USUAL_SCATTER**2 + 2 * math.log(2) ** 2) / 4 * 1.5))


# what is run after training


@pytest.fixture
def serving_spec(make_spec: MakeSpec) -> StudySpec:
    at = {"bf16": {"quantization": "bf16"}, "nf4": {"quantization": "nf4"}}
    return llama(make_spec, serve={"at": at})


def served(spec: StudySpec, way: str, name: str) -> Trial:
    run = trial_of(spec, "lora", "confirm", 101)
    trials = [*serving.of_base(spec, trial_of(spec, "lora", "baseline")), *serving.of_run(spec, run)]
    return next(t for t in trials if t.served is not None and (t.served.way, t.served.name) == (way, name))


@pytest.mark.parametrize("way", ["base", "merged", "adapter"])
def test_a_served_model_is_forecast_as_it_is_stored_then(serving_spec: StudySpec, way: str) -> None:
    forecaster = Forecaster(serving_spec, card(80))
    wide, narrow = (served(serving_spec, way, name) for name in ("bf16", "nf4"))
    assert forecaster.setup(narrow).weight_bits == pytest.approx(4.127, abs=1e-3)
    assert forecaster.setup(wide).weight_bits == 16
    assert (forecaster.setup(narrow).adapter is not None) == (way == "adapter")
    found = forecaster.trial(narrow)
    assert found.tensors is None
    assert set(found.stage_seconds) == {"load", "adapt", "evaluate", "reference"}
    assert found.seconds.mid == pytest.approx(sum(s.mid for s in found.stage_seconds.values()))
    # the model that it is held against has 16 bits: whatever is served, that has to fit
    assert found.allocated_bytes.mid >= 0.97 * forecaster.trial(wide).allocated_bytes.mid


def test_a_plan_counts_what_is_run_after_training(serving_spec: StudySpec, spec: StudySpec) -> None:
    without, found = plan(spec, card(80)), plan(serving_spec, card(80))
    assert without.served is None
    assert found.served is not None
    # two bit-widths: the base, and for each of two seeds of one arm two ways
    assert found.served.runs == 2 + 2 * 2 * 2
    assert found.runs == without.runs + found.served.runs
    assert found.seconds.mid == pytest.approx(without.seconds.mid + found.served.seconds.mid)


def test_the_times_of_a_trial_of_speed_sharpen_nothing(spec: StudySpec, make_record: MakeRecord) -> None:
    trial = trial_of(spec, "lora", "search")
    cold = Forecaster(spec, card(80)).trial(trial)
    run = measured(make_record, trial, 9.0)
    timed = measured(make_record, trial.model_copy(update={"phase": "speed"}), 9.0)
    assert Forecaster(spec, card(80), [run]).trial(trial) != cold
    assert Forecaster(spec, card(80), [timed]).trial(trial) == cold
    assert Forecaster(spec, card(80)).knowing([timed]).trial(trial) == cold


def test_comparing_is_judged_by_what_comparing_took(serving_spec: StudySpec, make_record: MakeRecord) -> None:
    def forecast(**stages: float) -> float:
        measured_stages = [Stage(stage=k, seconds=v) for k, v in stages.items()]  # type: ignore[arg-type]
        done = measured(make_record, run, 1.0, stages=measured_stages, train=None)
        return Forecaster(serving_spec, card(80), [done]).trial(asked).stage_seconds["reference"].mid

    run = served(serving_spec, "merged", "bf16")
    asked = run
    assert forecast(reference=100.0) == pytest.approx(100, rel=0.01)
    asked = served(serving_spec, "base", "bf16")  # nothing is merged there
    assert forecast(reference=100.0) == forecast(reference=1.0)
