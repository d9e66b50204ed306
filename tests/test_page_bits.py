"""The page of bit-widths: what it draws and lists, and that it says what `harness bits` says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import stores
from conftest import Open
from test_bits import ITEMS, Fill, fill
from test_cli_bits import whole_study

from harness import bits
from harness.bits import Bits
from harness.summary import gather, summarise

pytest.importorskip("streamlit", reason="the dashboard is an extra")

from dashboard import shared  # after the check that it is there
from dashboard.views import bits as shown
from dashboard.views import bits_charts

__all__ = ["fill"]  # a fixture

METRIC = "sums/acc"


@pytest.fixture
def whole(fill: Callable[..., Fill]) -> Bits:
    return bits.answer(whole_study(fill).store)


def test_backends_are_told_by_the_quantization() -> None:
    names = ["fp32", "bf16", "nf4", "int8", "hqq3", "gptq4", "torchao8", "torchao_fp8", "mine"]
    assert [shown.backend(n) for n in names] == [
        "unquantized", "unquantized", "bitsandbytes", "bitsandbytes", "hqq", "gptq", "torchao", "torchao", "other",
    ]  # fmt: skip


def test_a_share_is_drawn_in_percent_with_its_interval(whole: Bits) -> None:
    base = whole.questions[0]
    assert shown.title(METRIC, base) == "sums acc (%)"
    last = shown.points(base, METRIC)[-1]
    # 240 of 400 items right, as in the table of `harness bits`: 0.600 ± 0.048
    assert (last.name, last.value, last.said) == ("hqq2", pytest.approx(60.0), "worse")
    assert (last.low, last.high) == (pytest.approx(55.2, abs=0.05), pytest.approx(64.8, abs=0.05))


def test_differences_are_in_points_and_the_reference_is_at_zero(whole: Bits) -> None:
    some = shown.differences(whole.questions[0], METRIC)
    assert [p.name for p in some] == ["fp32", "hqq8", "hqq4", "hqq2"]
    assert (some[0].value, some[0].low, some[0].said) == (0.0, None, "the reference")
    assert some[-1].value == pytest.approx(-40.0)


def test_a_loss_is_named_with_its_unit_and_has_no_percent(whole: Bits) -> None:
    base = whole.questions[0]
    assert "test_loss" in shown.measures(base)
    assert shown.title("test_loss", base) == "test loss (nats per token), lower is better"
    assert not shown.percent("test_loss")


def test_the_lowest_that_holds_is_marked_by_a_ring_of_its_own(whole: Bits) -> None:
    base = whole.questions[0]
    some = shown.points(base, METRIC)
    marked = bits_charts.quality_chart(some, "x", base.reference, 3.0, base.lowest)
    plain = bits_charts.quality_chart(some, "x", base.reference, 3.0, None)
    assert marked is not None and plain is not None
    assert len(marked.to_dict()["layer"]) == len(plain.to_dict()["layer"]) + 1
    rings = [d for d in marked.to_dict()["datasets"].values() if len(d) == 1 and d[0].get("name") == "hqq4"]
    assert len(rings) == 1


def test_without_a_margin_there_is_no_band(whole: Bits) -> None:
    some = shown.points(whole.questions[0], METRIC)
    kinds = [
        [layer["mark"]["type"] for layer in chart.to_dict()["layer"]]
        for margin in (3.0, 0.0)
        if (chart := bits_charts.quality_chart(some, "x", "fp32", margin, None)) is not None
    ]
    assert [k.count("rect") for k in kinds] == [1, 0]


def test_every_question_is_listed_with_its_answer(whole: Bits) -> None:
    listed = shown.answers(whole)
    assert list(listed["Answer"]) == ["Shown to hold"] * 4
    assert listed.loc[0, "Lowest that holds"] == "hqq4 (5 bits)"


def test_what_holds_says_what_its_weights_take_instead_of_the_reference(fill: Callable[..., Fill]) -> None:
    study = fill()
    study.base("fp32", np.ones(ITEMS), stored_bytes=4 << 20)
    study.base("hqq8", np.ones(ITEMS), stored_bytes=1 << 20)
    listed = shown.answers(bits.answer(study.store))
    assert listed.loc[0, "Its weights"] == "1.0 MiB instead of 4.0 MiB"


def test_a_row_of_the_table_has_its_interval_in_percent_and_its_difference_in_points(whole: Bits) -> None:
    row = shown.table(whole.questions[0]).iloc[-1]
    assert row["Sums acc (%)"] == "60.0 % [55.2, 64.8]"
    assert row["Difference from fp32"].startswith("-40.0 points [")
    assert (row["Verdict"], row["Runs"]) == ("worse", "1 done")


def test_what_was_not_run_stays_on_the_chart_with_the_reason(fill: Callable[..., Fill]) -> None:
    study = fill()
    study.base("fp32", np.ones(ITEMS))
    study.base("hqq8", None, status="does_not_fit", scores=[], examples=[])
    base = bits.answer(study.store).questions[0]
    said = {p.name: p.said for p in shown.points(base, METRIC)}
    assert said == {"fp32": "the reference", "hqq8": "does not fit", "hqq4": "not run", "hqq2": "not run"}
    assert shown.settling(base, "s") == ["It is open, and it cannot be said yet how many runs would settle it."]
    chart = bits_charts.quality_chart(shown.points(base, METRIC), "x", "fp32", 0.0, None)
    assert chart is not None
    assert "not run" in chart.to_json()


def test_nothing_scored_is_no_chart(fill: Callable[..., Fill]) -> None:
    empty = bits.answer(fill().store).questions[0]
    assert bits_charts.quality_chart(shown.points(empty, METRIC), "x", "fp32", 0.0, None) is None
    assert bits_charts.divergence_chart(empty) is None
    assert bits_charts.sizes_chart(empty) is None


def test_a_divergence_of_zero_is_drawn_on_the_floor_of_the_log_axis(fill: Callable[..., Fill]) -> None:
    study = fill()
    study.base("fp32", np.ones(ITEMS), kl={"kl_unquantized": [0.0, 0.0]})
    study.base("hqq8", np.ones(ITEMS), kl={"kl_unquantized": [0.1, 0.3]})
    chart = bits_charts.divergence_chart(bits.answer(study.store).questions[0])
    assert chart is not None
    (rows,) = chart.to_dict()["datasets"].values()
    assert [r["kl"] for r in rows] == [bits_charts.LEAST_KL, pytest.approx(0.2)]


def test_a_study_of_one_bit_width_shows_what_it_has(tmp_path: Path) -> None:
    arms = {name: stores.ARMS[name] for name in ("full", "qlora-nf4")}
    evidence = gather(stores.generate(tmp_path, "two", 20, arms=arms))
    assert not bits.asks(evidence.spec)
    assert "asks nothing about bit-widths" in shown.nothing_asked(evidence)
    table = shown.by_arm(evidence, summarise(stores.StudyStore(tmp_path / "two"), evidence))
    assert list(table["Bits per weight"]) == ["32", "4.127"]
    assert all("[" in cell for cell in table["Tiny sort down exact match"])


def test_the_page_says_the_sentences_of_the_command_word_for_word(fill: Callable[..., Fill], opened: Open) -> None:
    store = whole_study(fill).store
    for question in bits.answer(store).questions:
        page = opened(store.folder.parent, "bits", bits_question=question.title)
        assert not page.exception and not page.error
        told = [m.value for m in [*page.markdown, *page.caption]]
        for finding in question.findings:
            assert any(shared.plain(finding.sentence) in words for words in told)


def test_a_study_that_asks_nothing_names_one_that_does(tmp_path: Path, opened: Open) -> None:
    arms = {name: stores.ARMS[name] for name in ("full", "qlora-nf4")}
    stores.generate(tmp_path, "two", 20, arms=arms)
    page = opened(tmp_path, "bits")
    assert not page.exception
    assert [c.value for c in page.code] == [f"harness study tiny-bits --store {tmp_path}"]
