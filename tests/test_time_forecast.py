"""Setups and processors in, seconds out, with rates so round that the arithmetic can be done by eye."""

import importlib
import math
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd
import pytest

from harness.forecast.architecture import Architecture, Linear
from harness.forecast.processors import Processor, find, nameless
from harness.forecast.setup import Profile, Setup
from harness.forecast.time import (
    BETWEEN_STACKS,
    COLD,
    DEQUANTIZE_BYTES,
    EAGER_BYTES,
    MEMORY_SHARE,
    STEP_SECONDS,
    Rates,
    calibrated,
    forward,
    load,
    step,
    step_parts,
)
from harness.interfaces import AdapterShape

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT.parent / "shared" / "data" / "published_measurements.csv"

NEVER = 1e30
"""A rate at which something takes no time."""

SHAPE = Architecture(
    name="square", model_type="llama", layers=10, hidden=1000, heads=10, kv_heads=10, head_dim=100, intermediate=1000,
    vocabulary=1000, tied=True, linears=(Linear(name="q_proj", inputs=1000, outputs=1000),),
)  # fmt: skip
"""Ten layers of one square matrix each: a million weights a layer, a million in the head."""


def machine(**changes: Any) -> Processor:
    """A card that computes 1e12 operations a second and does everything else in no time."""
    plain: dict[str, Any] = {
        "name": "plain", "kind": "cuda", "memory_bytes": 10**12, "bandwidth": NEVER, "efficiency": 1.0,
        "flops": {"fp32": 1e12, "bf16": 1e12}, "attention": 1.0, "launch": 0.0, "link": NEVER, "fabric": NEVER,
    }  # fmt: skip
    return Processor(**(plain | changes))


def setup(**changes: Any) -> Setup:
    """Full fine-tuning on 1,000 tokens."""
    plain: dict[str, Any] = {
        "architecture": SHAPE, "full": True, "weight_bits": 16, "micro_batch": 10, "length": 100, "attention": "flash",
    }  # fmt: skip
    return Setup(**(plain | changes))


LORA: dict[str, Any] = {"full": False, "adapter": AdapterShape(rank=1)}


def seconds(**changes: Any) -> dict[str, float]:
    return step_parts(setup(**changes), machine())


def test_full_fine_tuning_multiplies_every_weight_three_times() -> None:
    # 2 operations x 1,000 tokens x 1e7 weights x (forward, gradient of input, gradient of weights) / 1e12 a second
    assert seconds()["products"] == pytest.approx(0.06)
    assert seconds()["head"] == pytest.approx(0.006)


def test_frozen_weights_have_no_gradient_to_compute() -> None:
    assert seconds(**LORA)["products"] == pytest.approx(0.04)


def test_checkpointing_adds_a_forward_pass_through_the_layers_and_not_through_the_head() -> None:
    assert seconds(checkpointing=True)["products"] == pytest.approx(0.08)
    assert seconds(**LORA, checkpointing=True)["products"] == pytest.approx(0.06)
    assert seconds(checkpointing=True)["head"] == seconds()["head"]


def test_attention_grows_with_the_square_of_the_length() -> None:
    # 1,000 tokens see 50 on average: 4 x 50 x 1,000 a token, once forward and two and a half times backward, ten layers
    assert seconds()["attention"] == pytest.approx(1000 * 4 * 50 * 1000 * 3.5 * 10 / 1e12)
    assert seconds(length=200, micro_batch=5)["attention"] == pytest.approx(2 * seconds()["attention"])


def test_a_mask_costs_the_half_that_flash_attention_skips() -> None:
    masked = seconds(attention="sdpa", padded=True)["attention"]
    assert masked > 2 * seconds(attention="sdpa", padded=False)["attention"]
    assert seconds(attention="sdpa", padded=False)["attention"] == seconds(attention="flash")["attention"]


def test_a_window_limits_what_attention_sees() -> None:
    near = setup(architecture=SHAPE.model_copy(update={"window": 10}))
    # ten back, fewer for the first ten: 9.5 on average, where all of them see 50
    assert step_parts(near, machine())["attention"] == pytest.approx(seconds()["attention"] * 9.5 / 50)


def test_the_first_flash_attention_is_half_as_fast() -> None:
    first = setup(profile=Profile(name="old", flash=1))
    assert step_parts(first, machine())["attention"] == pytest.approx(2 * seconds()["attention"])


def test_unfused_attention_moves_every_score() -> None:
    slow = machine(bandwidth=1e9 / MEMORY_SHARE)
    products = step_parts(setup(attention="eager"), machine())["attention"]
    moved = step_parts(setup(attention="eager"), slow)["attention"] - products
    # 10 sequences x 10 heads x 100 x 100 scores, forward and twice that backward, ten layers
    assert moved == pytest.approx(1e6 * EAGER_BYTES * 3 * 10 / 1e9)


def test_fp32_costs_what_its_rate_says_and_bf16_runs_as_fp32_where_there_is_none() -> None:
    card = machine(flops={"fp32": 1e11, "bf16": 1e12})
    assert step_parts(setup(compute="fp32"), card)["products"] == pytest.approx(0.6)
    assert step_parts(setup(), card)["products"] == pytest.approx(0.06)
    old = machine(flops={"fp32": 1e11, "fp16": 1e12})
    assert step_parts(setup(), old)["products"] == pytest.approx(0.6)


def test_a_token_goes_through_the_experts_that_it_uses() -> None:
    linear = Linear(name="up_proj", inputs=1000, outputs=1000, copies=8)
    mixture = SHAPE.model_copy(update={"linears": (linear,), "experts": 8, "experts_used": 2})
    assert step_parts(setup(architecture=mixture), machine())["products"] == pytest.approx(2 * 0.06)


def test_a_tiny_batch_takes_as_long_as_launching_it() -> None:
    host = machine(launch=1e-3)
    one, two = step(setup(length=2, micro_batch=1), host).mid, step(setup(length=2, micro_batch=2), host).mid
    assert one == pytest.approx(two, rel=0.01)
    deeper = setup(length=2, micro_batch=1, architecture=SHAPE.model_copy(update={"layers": 20}))
    assert step(deeper, host).mid == pytest.approx(2 * one, rel=0.1)


def test_a_large_batch_hides_its_launches() -> None:
    parts = step_parts(setup(micro_batch=10_000), machine(launch=1e-6))
    assert parts["launches"] < 0.01 * parts["products"]


def test_dequantization_costs_the_same_for_few_tokens_as_for_many() -> None:
    card = machine(bandwidth=1e9 / MEMORY_SHARE)
    quantized = LORA | {"quantized": True, "weight_bits": 4.5, "quantization": "nf4"}
    few = step_parts(setup(**quantized, micro_batch=1), card)["dequantization"]
    many = step_parts(setup(**quantized, micro_batch=64), card)["dequantization"]
    # ten million weights, forward and backward
    assert few == many == pytest.approx(1e7 * DEQUANTIZE_BYTES["nf4"] * 2 / 1e9)
    assert "dequantization" not in step_parts(setup(**LORA), card)


def test_accumulation_repeats_the_micro_batch_and_not_the_optimizer() -> None:
    card = machine(bandwidth=1e9)
    once, thrice = step_parts(setup(), card), step_parts(setup(accumulation=3), card)
    assert thrice["products"] == pytest.approx(3 * once["products"])
    assert thrice["optimizer"] == once["optimizer"]


def test_an_optimizer_that_keeps_less_is_faster() -> None:
    card = machine(bandwidth=1e9 / MEMORY_SHARE)
    names = ("adamw_torch", "adamw_torch_fused", "adamw_8bit")
    foreach, fused, eight = (step_parts(setup(optimizer=name), card)["optimizer"] for name in names)
    assert foreach > fused > eight
    # fused, on two-byte weights: read and write weight and two states, read the gradient twice
    assert fused - STEP_SECONDS == pytest.approx(SHAPE.parameters * 2 * 8 / 1e9)


def test_paged_state_costs_nothing_extra_where_it_fits_and_the_link_where_it_does_not() -> None:
    paged = setup(optimizer="paged_adamw_8bit")
    roomy = step_parts(paged, machine(link=1e6))["optimizer"]
    assert roomy == pytest.approx(STEP_SECONDS)
    assert step_parts(paged, machine(link=1e6, memory_bytes=10**6))["optimizer"] > 10


def test_sharded_weights_travel_in_every_micro_batch_and_gradients_of_ddp_once_a_step() -> None:
    slow = machine(fabric=1e9)
    sharded = {"devices": 2, "sharding": "fsdp"}
    fsdp = step_parts(setup(**sharded), slow)["communication"]
    assert step_parts(setup(**sharded, accumulation=2), slow)["communication"] == pytest.approx(2 * fsdp)
    ddp = step_parts(setup(devices=2, sharding="ddp"), slow)["communication"]
    # half of the gradients out, half of the sums back, two bytes each
    assert ddp == pytest.approx(2 * SHAPE.parameters * 2 / 2 / 1e9)
    assert step_parts(setup(devices=2, sharding="ddp", accumulation=2), slow)["communication"] == ddp
    assert "communication" not in step_parts(setup(), slow)


def test_communication_hides_partly_behind_computing() -> None:
    slow = machine(fabric=1e9)
    alone = step_parts(setup(devices=2, sharding="fsdp", micro_batch=1, length=2), slow)["communication"]
    beside = step_parts(setup(devices=2, sharding="fsdp", micro_batch=100), slow)["communication"]
    assert 0 < beside < 0.7 * alone


def test_between_machines_the_network_is_slower_than_the_fabric() -> None:
    fast = machine(fabric=1e12)
    near = step_parts(setup(devices=8, sharding="ddp"), fast)["communication"]
    far = step_parts(setup(devices=16, sharding="ddp"), fast)["communication"]
    assert far > 30 * near


def test_offloaded_weights_take_the_time_of_the_link() -> None:
    tokens: dict[str, Any] = {"micro_batch": 1, "length": 2}
    offloaded = step_parts(setup(**LORA, **tokens, offload=True), machine(link=1e6))
    # twice two bytes a weight
    assert offloaded["offload"] == pytest.approx(4 * SHAPE.parameters / 1e6, rel=0.01)


def test_adapters_cost_more_with_dropout_and_most_with_dora() -> None:
    card = machine(bandwidth=1e9)
    plain, dropped, dora = (
        step_parts(setup(full=False, adapter=adapter), card)["adapters"]
        for adapter in (
            AdapterShape(rank=4),
            AdapterShape(rank=4, dropout=0.1),
            AdapterShape(rank=4, dropout=0.1, dora=True),
        )
    )
    assert plain < dropped < dora
    assert "adapters" not in step_parts(setup(), card)


def test_fused_kernels_move_less() -> None:
    card = machine(bandwidth=1e9)
    fused = setup(profile=Profile(name="fused", fused_layer=True))
    assert step_parts(fused, card)["elementwise"] < 0.6 * step_parts(setup(), card)["elementwise"]


def test_an_evaluation_pass_is_the_forward_part_of_a_step() -> None:
    # 2 x 1,000 x 1.1e7 weights with the head, and attention once
    expected = 0.022 + 1000 * 4 * 50 * 1000 * 10 / 1e12
    assert forward(setup(), machine(), batch=10, length=100).mid == pytest.approx(expected)
    checkpointed = setup(checkpointing=True, accumulation=7)
    assert forward(checkpointed, machine(), batch=10, length=100).mid == pytest.approx(expected)


def test_loading_takes_longer_where_weights_are_quantized_and_says_that_disks_differ() -> None:
    quantized = LORA | {"quantized": True, "weight_bits": 4.5, "quantization": "nf4"}
    plain = load(setup(**LORA), machine())
    assert load(setup(**quantized), machine()).mid > plain.mid
    assert plain.high / plain.low > 5


def test_an_interval_is_as_wide_as_the_rates_are_unsure() -> None:
    narrow = step(setup(), machine(), Rates(source="measured", factor=2.0, spread=0.1))
    cold = step(setup(), machine())
    assert narrow.mid == pytest.approx(2 * cold.mid)
    assert narrow.high / narrow.mid == pytest.approx(math.exp(0.1))
    assert cold.mid / cold.low == pytest.approx(math.exp(COLD.spread))


def test_a_card_of_which_only_the_size_is_known_has_a_wider_interval() -> None:
    named, unnamed = step(setup(), find("RTX 3090")), step(setup(), nameless(24))
    assert unnamed.mid == named.mid
    assert unnamed.high > named.high


def measured(factor: float, count: int, card: Processor | None = None) -> list[tuple[Setup, Processor, float]]:
    card = card or machine()
    return [(setup(micro_batch=n), card, factor * step(setup(micro_batch=n), card).mid) for n in range(1, count + 1)]


def test_nothing_measured_leaves_the_table_of_processors() -> None:
    assert calibrated([], "nothing") == COLD


def test_one_measured_run_moves_the_forecast_most_of_the_way() -> None:
    rates = calibrated(measured(1.5, 1), "one run")
    assert rates.source == "one run"
    assert 1.4 < rates.factor < 1.5
    assert rates.spread < COLD.spread / 2


def test_more_runs_that_agree_bring_it_nearer_and_make_it_surer() -> None:
    one, many = calibrated(measured(1.5, 1), ""), calibrated(measured(1.5, 20), "")
    assert 1.5 > many.factor > one.factor
    assert many.spread < one.spread


def test_runs_that_disagree_are_trusted_less() -> None:
    agreeing = measured(1.5, 4)
    scattered = [(s, p, t * f) for (s, p, t), f in zip(agreeing, (0.5, 2.0, 0.5, 2.0), strict=True)]
    assert calibrated(scattered, "").factor < calibrated(agreeing, "").factor
    assert calibrated(scattered, "").spread > calibrated(agreeing, "").spread


def test_on_a_cpu_one_measured_run_is_believed_though_it_is_far_off() -> None:
    rates = calibrated(measured(3.0, 1, find("cpu")), "one run")
    assert rates.factor == pytest.approx(3.0, rel=0.05)
    # where rates are from a data sheet the same run is believed a little less
    assert calibrated(measured(3.0, 1), "one run").factor < rates.factor
    assert find("cpu").spread > BETWEEN_STACKS


def errors(rows: list[Any], rates_of: Any) -> dict[str, list[float]]:
    """Relative errors by source of rows forecast with `rates_of(row's index)`; None leaves a row out."""
    found: dict[str, list[float]] = {}
    for index, row in enumerate(rows):
        rates = rates_of(index)
        if rates is not None:
            forecast = step(row.setup, row.processor, rates).mid
            found.setdefault(row.source, []).append(abs(forecast / row.seconds_per_step - 1))
    return found


@pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"needs {PUBLISHED}")
def test_published_speeds_are_met_within_the_stated_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    time_of = importlib.import_module("_published_time").time_of
    frame = pd.read_csv(PUBLISHED).astype(object)
    rows = [r for row in frame.where(frame.notna(), None).to_dict("records") if not isinstance(r := time_of(row), str)]
    assert len(rows) > 300
    cold = errors(rows, lambda _: COLD)
    # the first row of every stack stands for the one that a user has measured
    first: dict[tuple[str, ...], int] = {}
    for index, row in enumerate(rows):
        first.setdefault(row.stack, index)

    def taught(index: int) -> Rates | None:
        known = first[rows[index].stack]
        one = rows[known]
        return None if known == index else calibrated([(one.setup, one.processor, one.seconds_per_step)], "one row")

    warm = errors(rows, taught)
    assert mean(mean(some) for some in cold.values()) < 0.25
    assert mean(mean(some) for some in warm.values()) < 0.10
