"""The page of cost and fit: what is measured, what is forecast, and that the two are told apart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stores
from conftest import MakeRecord, MakeSpec, Open

from harness.budget import plan
from harness.decision import make
from harness.forecast.processors import Processor, find
from harness.recommend import Limits
from harness.record import Forecast, Interval, Record, Stage, TensorBytes
from harness.scoring import score
from harness.summary import Evidence, gather, summarise
from harness.units import GIB

pytest.importorskip("streamlit", reason="the dashboard is an extra")

from dashboard.views import cost_cards, cost_forecasts, cost_memory, cost_spent  # after the check that it is there


def forecast(peak: float, **changes: Any) -> Forecast:
    values = {
        "allocated_bytes": Interval(low=0.9 * peak, mid=peak, high=1.1 * peak),
        "peak_phase": "backward",
        "device": "cpu",
        "fits": "yes",
        "seconds": Interval(low=5, mid=7.5, high=10),
    }
    return Forecast.model_validate({**values, **changes})


@pytest.fixture
def of(tmp_path: Path, make_spec: MakeSpec) -> Any:
    """What is gathered from records of `full` and `lora`."""

    def evidence(*records: Record) -> Evidence:
        store = stores.Store(tmp_path).open(make_spec())
        for record in records:
            store.write(record.model_copy(update={"question_id": store.spec().question_id}))
        return gather(store)

    return evidence


def test_a_step_is_taken_apart_into_its_components(of: Any, make_record: MakeRecord) -> None:
    (need,) = cost_memory.needs(of(make_record(forecast=None)))
    # gradients are within the peak of a step: 200 = 40 + 160
    assert need.parts == {
        "weights": 400, "adapter": 40, "optimizer": 80, "gradients": 40, "activations and temporaries": 160,
    }  # fmt: skip
    assert (need.basis, need.total) == ("measured", 720)


def test_what_the_driver_saw_beyond_the_tensors_is_allocator_and_context(of: Any, make_record: MakeRecord) -> None:
    stage = Stage(stage="train", seconds=1, reserved_peak_bytes=800, device_peak_bytes=1000)
    (need,) = cost_memory.needs(of(make_record(forecast=None, stages=[stage])))
    assert need.parts["allocator and context"] == 280
    assert need.total == 1000


def test_a_forecast_stands_beside_the_measurement_with_its_interval(of: Any, make_record: MakeRecord) -> None:
    tensors = TensorBytes(weights=400, adapter=40, gradients=40, optimizer=80, step_peak=180)
    measured, expected = cost_memory.needs(of(make_record(forecast=forecast(700, tensors=tensors))))
    assert (measured.basis, measured.total, measured.low) == ("measured", 720, None)
    assert (expected.basis, expected.total) == ("forecast", 700)
    assert (expected.low, expected.high) == (pytest.approx(630), pytest.approx(770))


def test_an_interval_of_another_phase_than_the_step_is_not_drawn(of: Any, make_record: MakeRecord) -> None:
    tensors = TensorBytes(weights=400, adapter=40, gradients=40, optimizer=80, step_peak=180)
    _, expected = cost_memory.needs(of(make_record(forecast=forecast(5000, tensors=tensors, peak_phase="evaluation"))))
    assert (expected.total, expected.low) == (700, None)


def test_a_configuration_without_room_has_its_forecast_and_the_reason(tmp_path: Path) -> None:
    store = stores.generate(tmp_path, "small", 12, kinds=("out_of_memory",), flavour="cuda")
    needs = cost_memory.needs(gather(store))
    assert {(n.basis, n.note) for n in needs} == {("forecast", "out of memory")}
    chart = cost_memory.memory_chart(needs, None)
    assert chart is not None
    assert "out of memory" in chart.to_json()


def test_measured_and_forecast_are_told_apart_by_text_and_by_bars_of_their_own(tmp_path: Path) -> None:
    needs = cost_memory.needs(gather(stores.generate(tmp_path, "s", 60)))
    chart = cost_memory.memory_chart(needs, None)
    assert chart is not None
    whole = chart.to_dict()
    assert {layer["encoding"]["yOffset"]["field"] for layer in whole["layer"]} == {"basis"}
    said = [row["said"] for rows in whole["datasets"].values() for row in rows if "end" in row]
    assert len(said) == 8
    assert sum(words.startswith("measured ") for words in said) == 4
    assert sum(words.startswith("forecast ") for words in said) == 4


def test_a_limit_is_drawn_where_it_is_within_reach(tmp_path: Path) -> None:
    needs = cost_memory.needs(gather(stores.generate(tmp_path, "s", 60)))  # some MiB
    near, far = (cost_memory.memory_chart(needs, limit) for limit in (20 << 20, 24 * GIB))
    assert near is not None and far is not None
    assert len(near.to_dict()["layer"]) == len(far.to_dict()["layer"]) + 1


def card(name: str, gib: float) -> Processor:
    return find("RTX 4090").model_copy(update={"name": name, "memory_bytes": round(gib * GIB)})


def test_a_card_too_small_for_a_run_holds_it_at_a_smaller_micro_batch_or_not_at_all(tmp_path: Path) -> None:
    evidence = gather(stores.generate(tmp_path, "s", 0))
    cards = [card("tiny", 0.2), card("large", 24)]
    full = cost_cards.holdings(evidence.spec, [], cards)[0]
    assert (full.arm, full.basis) == ("full", "forecast")
    assert full.places["large"].fits == "yes"
    assert full.places["large"].micro_batch == 16
    assert full.places["tiny"].fits == "no"  # the context alone takes more
    rates = {"tiny": 0.1, "large": 0.5}
    row = cost_cards.arms_table([full], cards, rates, None).iloc[0]
    assert row["Smallest card that holds it"] == "large (24.0 GiB)"
    assert row["Cheapest card that holds it"] == "large (24.0 GiB, $0.50 per hour)"


def test_a_card_holds_what_the_plan_for_it_says(tmp_path: Path) -> None:
    evidence = gather(stores.generate(tmp_path, "s", 0, flavour="cuda"))
    cards = [find(name) for name in ("RTX 4090", "MI250", "H100-SXM")]
    found = {h.arm: h.places for h in cost_cards.holdings(evidence.spec, [], cards)}
    for processor in cards:
        for arm in plan(evidence.spec, processor).arms:
            place, needed = found[arm.arm][processor.name], arm.confirm.process_bytes
            assert needed is not None
            assert (place.fits, place.micro_batch) == (arm.confirm.fits, arm.micro_batch)
            assert place.needed_bytes == round(needed.mid)
    assert len({p.fits for places in found.values() for p in places.values()}) > 2


def test_cards_are_filtered_by_what_they_hold() -> None:
    holds = cost_cards.Holding(
        "a",
        "forecast",
        {"x": cost_cards.Place("no", 9 * GIB, 4, False), "y": cost_cards.Place("likely", 9 * GIB, 2, True)},
        "",
    )
    needs = cost_cards.Holding(
        "b",
        "measured",
        {"x": cost_cards.Place("no", 20 * GIB, None, False), "y": cost_cards.Place("no", 20 * GIB, None, False)},
        "no plugin",
    )
    cards = [card("x", 8), card("y", 12)]
    tables = [cost_cards.cards_table([holds, needs], cards, {"x": 0.25}, which) for which in cost_cards.WHERE]
    assert [list(t["Card"]) if len(t) else [] for t in tables] == [["x", "y"], ["y"], []]
    assert list(tables[0]["Per hour"]) == ["$0.25", "-"]
    assert list(tables[0]["a (forecast)"]) == ["no, 9.0 GiB", "likely at 2 per pass, 9.0 GiB"]
    assert list(tables[0]["b (measured)"]) == ["no, 20.0 GiB", "no, 20.0 GiB"]


def test_a_method_that_is_unknown_here_is_judged_by_what_was_measured_of_it(
    make_spec: MakeSpec, make_record: MakeRecord
) -> None:
    arms = {m: {"method": m, "quantization": "fp32", "params": {"learning_rate": 1e-3}} for m in ("full", "ia3")}
    stage = Stage(stage="train", seconds=1, reserved_peak_bytes=10 * GIB)
    run = make_record(trial={"arm": "ia3", "method": "ia3"}, stages=[stage])
    cards = [card("small", 10), card("large", 24)]
    _, ia3 = cost_cards.holdings(make_spec(arms=arms), [run], cards)
    assert ia3.basis == "measured"
    # 5 % of a card stay free: 10 of 10 GiB are too much
    assert {name: place.fits for name, place in ia3.places.items()} == {"small": "no", "large": "yes"}
    said = cost_cards.unforecast([ia3])
    assert said is not None
    assert said.startswith("Not forecast here: ia3 (no 'ia3' in harness.methods)")
    _, unmeasured = cost_cards.holdings(make_spec(arms=arms), [], cards)
    assert (unmeasured.basis, unmeasured.places) == (None, {})


def test_the_users_limit_is_a_card_of_its_own_and_comes_first() -> None:
    cards = cost_cards.cards_of(24 * GIB)
    assert cards[0].name == "Your limit: 24 GiB"
    assert cards[0].memory_bytes is not None and 23 * GIB < cards[0].memory_bytes < 24 * GIB
    sizes = [c.memory_bytes or 0 for c in cards[1:]]
    assert sizes == sorted(sizes)
    assert len(cost_cards.cards_of(GIB // 2)) == len(cards) - 1  # no card is that small


def test_an_edited_rate_counts_and_an_emptied_one_is_none() -> None:
    table = cost_cards.rates_table()
    table.loc[table["Card"] == "H100-SXM", "Price per hour ($)"] = 9.0
    table.loc[table["Card"] == "T4", "Price per hour ($)"] = None
    rates = cost_cards.rates_of(table)
    assert rates["H100-SXM"] == 9.0
    assert rates["T4"] is None


def test_coverage_is_that_of_the_command(tmp_path: Path) -> None:
    records = gather(stores.generate(tmp_path, "s", 60)).records
    frame = cost_forecasts.calibration_frame(records, "time")
    error = next(e for e in score(records).time if e.quantity == "all stages")
    assert len(frame) == error.n
    assert (frame["inside"] == cost_forecasts.INSIDE).mean() == pytest.approx(error.coverage)
    held = int((frame["inside"] == cost_forecasts.INSIDE).sum())
    assert f"in {held} of {error.n} runs ({100 * held / error.n:.0f} %" in cost_forecasts.coverage(frame, "time")


def test_a_few_runs_say_nothing_about_coverage(make_record: MakeRecord) -> None:
    frame = cost_forecasts.calibration_frame([make_record(forecast=forecast(720))], "memory")
    assert cost_forecasts.coverage(frame, "memory").endswith("in 1 of 1 run: too few to judge it by.")


def test_the_score_is_listed_as_the_command_lists_it(make_record: MakeRecord) -> None:
    run = make_record(forecast=forecast(720 * 1.05))  # the run's own accounting says 720
    table = cost_forecasts.score_table(score([run]))
    assert list(table["Forecast of"]) == [
        "memory, allocated",
        "time, all stages",
    ]
    assert list(table["Mean absolute error"]) == ["5.0 %", "0.0 %"]
    assert list(table["Inside the 90 % interval"]) == ["100 %", "100 %"]


def test_without_a_pair_there_is_no_chart(make_record: MakeRecord) -> None:
    frame = cost_forecasts.calibration_frame([make_record(forecast=None)], "memory")
    assert cost_forecasts.calibration_chart(frame, "memory") is None
    assert cost_forecasts.coverage(frame, "memory") == "No run has both a forecast of its memory and a measurement."


def test_time_is_told_apart_by_what_it_went_into(of: Any, make_record: MakeRecord) -> None:
    evidence = of(
        make_record(trial={"phase": "search"}, seconds=10),
        make_record(trial={"phase": "search", "params": {"learning_rate": 0.5}}, seconds=20, status="diverged"),
        make_record(trial={"phase": "confirm"}, seconds=30),
        make_record(trial={"arm": "zero-shot", "phase": "baseline", "method": "none", "params": {}}, seconds=5),
    )
    frame = cost_spent.spent_frame(evidence)
    spent = {(row.arm, row.purpose): row.seconds for row in frame.itertuples()}
    assert spent == {
        ("lora", "tuning"): 10, ("lora", "did not end well"): 20, ("lora", "confirmation"): 30,
        ("the base", "evaluation alone"): 5,
    }  # fmt: skip


def test_money_is_hours_times_the_price_and_energy_is_summed_where_it_was_measured(tmp_path: Path) -> None:
    store = stores.generate(tmp_path, "rented", 60, flavour="cuda")
    evidence = gather(store)
    frame = cost_spent.spent_frame(evidence)
    hours = sum(r.seconds for r in evidence.records) / 3600
    decision = make(store, evidence, summarise(store, evidence), Limits(per_hour=2.0))
    last = cost_spent.spent_table(frame, decision).iloc[-1]
    assert (last["Configuration"], last["Money"]) == ("in all", f"${2 * hours:.2f}")
    assert last["Energy"].endswith("Wh")
    said = cost_spent.spent_said(evidence, frame, decision)
    assert f"${2 * hours:.2f} at $2.00 per hour" in said
    assert "earlier ones" not in said

    killed = replace(evidence, records=[r.model_copy(update={"attempt": 2}) for r in evidence.records[:1]])
    said = cost_spent.spent_said(killed, frame, decision)
    assert "A run that was started again counts once, at its latest attempt" in said


def test_of_many_configurations_those_with_the_most_memory_are_drawn_first() -> None:
    some = [cost_memory.Need(f"a{i}", "measured", {"not told apart": i}, None, None, "") for i in range(1, 30)]
    assert [n.arm for n in cost_memory.largest(some, cost_memory.MANY)][:2] == ["a29", "a28"]
    assert len(cost_memory.largest(some, cost_memory.MANY)) == cost_memory.MANY
    assert cost_memory.largest(some[:3], cost_memory.MANY) == some[:3]


def test_a_plan_on_a_chosen_card_is_a_forecast_with_the_command_that_makes_it(tmp_path: Path, opened: Open) -> None:
    stores.generate(tmp_path, "s", 60)
    page = opened(tmp_path, "cost_and_fit", cost_card="RTX 4090", vram=24.0)
    assert not page.exception and not page.error
    assert any(t.value.startswith("Forecast: the whole study, ") for t in page.text)
    assert any("--gpu 'RTX 4090'" in c.value for c in page.code)
    cards = next(t.value for t in page.dataframe if "Per hour" in t.value)
    assert cards["Card"].iloc[0] == "Your limit: 24 GiB"


def test_a_card_that_is_in_no_table_is_forgotten(tmp_path: Path, opened: Open) -> None:
    stores.generate(tmp_path, "s", 1)
    page = opened(tmp_path, "cost_and_fit", cost_card="Voodoo 2")
    assert not page.exception
    assert page.selectbox(key="cost_card").value is None
