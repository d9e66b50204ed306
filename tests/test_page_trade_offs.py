"""The page on quality against cost."""

from pathlib import Path

import pytest
from conftest import Open
from stores import generate

from harness.decision import Decision, make
from harness.recommend import Limits
from harness.store import StudyStore
from harness.summary import gather, summarise
from harness.trade_offs import TradeOff, along

pytest.importorskip("streamlit", reason="the dashboard is an extra")

from dashboard.views import trade_offs as views  # after the check that it is there


def shown(store: StudyStore) -> tuple[TradeOff, Decision]:
    evidence = gather(store)
    summary = summarise(store, evidence)
    decision = make(store, evidence, summary, Limits())
    return along("memory", evidence, summary, decision), decision


@pytest.fixture(scope="module")
def rented(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    return generate(tmp_path_factory.mktemp("store"), "rented", 57, flavour="cuda", items=60)


def test_the_table_starts_with_the_cheapest(rented: StudyStore) -> None:
    found, decision = shown(rented)
    table = views.table(found, decision)
    assert list(table["Configuration"]) == ["qlora-nf4", "lora-int8", "lora", "full"]
    assert all(size.endswith(" GiB") for size in table["Peak memory"])
    assert all("[" in quality for quality in table["gsm8k exact match (%)"])
    assert all(chance.endswith("%") for chance in table["Chance to be on the front"])


def test_rows_and_points_are_picked_alike(rented: StudyStore) -> None:
    table = views.table(*shown(rented))
    points = {"picked": [{"configuration": "full"}, {"configuration": "lora"}, {"configuration": "of another study"}]}
    assert views.picked([2], table, points) == ["lora", "full"]
    assert views.picked([], table, {}) == []


def test_what_to_do_next_is_said(rented: StudyStore) -> None:
    found, _ = shown(rented)
    assert views.picking([], found).startswith("Pick two configurations")
    assert views.picking(["full"], found) == "full is picked. Pick one more to compare the two."
    assert views.picking(["full", "lora", "qlora-nf4"], found) == "3 are picked. Two can be compared at a time."
    assert views.picking(["lost", "full"], found) == "lost has no score, so there is nothing to compare."


def test_an_axis_that_was_not_measured_is_said_to_be_missing() -> None:
    assert views.left_out(["memory", "time", "cost", "energy"]) is None
    assert views.left_out(["memory", "time", "energy"]) == (
        "Not to choose from: cost (set a price per hour under Limits)."
    )


def test_the_page_follows_its_axis_and_the_limits(rented: StudyStore, opened: Open) -> None:
    at = opened(rented.folder.parent, "trade_offs")
    assert not at.exception
    assert "Peak memory" in at.dataframe[0].value
    at.number_input(key="vram").set_value(14).run()
    assert any("limit of 14.0 GiB with 5 % to spare" in c.value.replace("\\", "") for c in at.caption)
    at.segmented_control(key="trade_offs_axis").set_value("Energy").run()
    assert not at.exception
    assert all(value.endswith("Wh") for value in at.dataframe[0].value["Energy of training"])


def test_without_room_for_any_run_the_page_says_so(tmp_path: Path, opened: Open) -> None:
    generate(tmp_path, "tight", 30, flavour="cuda", kinds=("out_of_memory",))
    at = opened(tmp_path, "trade_offs")
    assert not at.exception
    assert any(text.value.endswith("What would fit which card is on the page Cost and fit.") for text in at.text)
    assert not at.code
