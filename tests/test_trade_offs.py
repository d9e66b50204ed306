"""Quality against a cost: the front, what is joined on it, and how that is said and drawn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stores import ARMS, Kind, generate

from harness import charts
from harness.decision import Decision, Row, make
from harness.intervals import Difference, Spread
from harness.recommend import Limits
from harness.summary import Evidence, Summary, gather, summarise
from harness.trade_offs import Point, TradeOff, along, apart, axes, front, limit_of
from harness.units import GIB
from harness.wording import trade_off_findings, trade_off_reading

Found = tuple[Evidence, Summary, Decision]


def found(root: Path, trials: int, limits: Limits | None = None, **how: Any) -> Found:
    store = generate(root, "rented", trials, flavour="cuda", **how)
    evidence = gather(store)
    summary = summarise(store, evidence)
    return evidence, summary, make(store, evidence, summary, limits or Limits())


@pytest.fixture(scope="module")
def rented(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return found(tmp_path_factory.mktemp("store"), 57, Limits(memory_bytes=int(9.5 * GIB)))


def rows(decision: Decision, qualities: Sequence[float]) -> list[Row]:
    names = ["a", "b", "c", "d"]
    return [replace(decision.rows[0], arm=n, quality=q) for n, q in zip(names, qualities, strict=False)]


def point(arm: str, cost: float, quality: float = 0.5, **changes: Any) -> Point:
    fields: dict[str, Any] = {
        "cost_low": None, "cost_high": None, "low": None, "high": None, "spread": "none", "seeds": 1,
        "standing": "fits", "place": "on the front", "front_probability": None,
    }  # fmt: skip
    return Point(arm=arm, cost=cost, quality=quality, **{**fields, **changes})


def trade_off(points: list[Point], **changes: Any) -> TradeOff:
    fields: dict[str, Any] = {
        "axis": "memory", "joined": [], "limit": None, "no_room": [], "unplaced": [], "alpha": 0.05, "refusal": None,
    }  # fmt: skip
    return TradeOff(points=points, **{**fields, **changes})


def test_the_front_holds_what_no_cheaper_one_reaches(rented: Found) -> None:
    decision = rented[2]
    # the cheapest first: b is worse than a, c as good as a and dearer, d is better than all
    assert front(rows(decision, [0.5, 0.4, 0.5, 0.6]), decision) == ["a", "d"]


def test_of_a_loss_the_lower_one_is_better(rented: Found) -> None:
    decision = replace(rented[2], higher_is_better=False)
    assert front(rows(decision, [0.5, 0.4, 0.5, 0.6]), decision) == ["a", "b"]


def test_two_are_apart_where_the_interval_leaves_out_zero() -> None:
    # no noise between seeds; a standard error of 0.01 over 1001 items, so 95 % is 0.0196 to each side
    certain = Spread(2, 0.0, 0.0)
    wide, narrow = (Difference(v, certain, certain, 1001, 1001, 0.01**2) for v in (0.021, 0.019))
    assert apart(wide, 0.05)
    assert not apart(narrow, 0.05)
    assert not apart(wide, 0.05 / 2)  # with two pairs of neighbours 0.0224 to each side
    assert not apart(None, 0.05)


def test_neighbours_on_the_front_are_joined_only_where_they_differ(tmp_path: Path) -> None:
    # by memory nf4, int8, lora, full: of the same quality but for full, which is far better
    shares = {"full": 0.95, "lora": 0.70, "lora-int8": 0.70, "qlora-nf4": 0.70}
    arms = {name: Kind(**{**vars(kind), "right": shares[name]}) for name, kind in ARMS.items()}
    evidence, summary, decision = found(tmp_path, 57, arms=arms)
    tried = along("memory", evidence, summary, decision)
    assert [p.arm for p in tried.points] == ["qlora-nf4", "lora-int8", "lora", "full"]
    assert [b for _, b in tried.joined] == ["full"]
    assert tried.front[-1].arm == "full"
    assert tried.front[-1].front_probability == pytest.approx(1.0)
    behind = along("time", evidence, summary, decision).points
    assert {p.arm for p in behind if p.place == "shown to be behind"} == {"lora-int8", "qlora-nf4"}


def test_nothing_is_joined_where_nothing_may_be_claimed(rented: Found) -> None:
    evidence, summary, decision = rented
    refused = replace(evidence, refusal="tuning budgets differ")
    none = replace(summary, comparison=None, pairs=[])
    tried = along("memory", refused, none, decision)
    assert tried.joined == []
    assert all(p.front_probability is None for p in tried.points)
    assert "No neighbours on it are joined: tuning budgets differ." in trade_off_findings(tried)


def test_only_what_was_measured_is_offered(rented: Found) -> None:
    decision = rented[2]
    assert axes(decision) == ["memory", "time", "cost", "energy"]
    bare = [replace(row, peak_bytes=None, energy_joules=None) for row in decision.rows]
    assert axes(replace(decision, rows=bare, per_hour=None)) == ["time"]
    assert axes(replace(decision, rows=[replace(row, quality=None) for row in bare])) == []


def test_the_limit_of_memory_leaves_five_percent_to_spare(rented: Found) -> None:
    evidence, summary, decision = rented
    limit = limit_of("memory", decision)
    assert limit == pytest.approx(9.5 * GIB / 1.05)
    over = {p.arm for p in along("memory", evidence, summary, decision).points if p.cost > (limit or 0)}
    assert over == {row.arm for row in decision.rows if row.standing == "over a limit"} != set()
    assert limit_of("time", decision) is None


def test_level_lines_end_where_the_limit_on_hours_is_held(rented: Found) -> None:
    evidence, summary, decision = rented
    by_arm = {row.arm: row for row in decision.rows}
    for p in along("time", evidence, summary, decision).points:
        hours = by_arm[p.arm].hours
        assert hours is not None
        assert p.cost_high == pytest.approx(hours * 3600)
        assert p.cost_low is not None
        assert p.cost_low < p.cost < p.cost_high
    assert all(p.cost_high is None for p in along("memory", evidence, summary, decision).points)


def test_how_many_neighbours_are_joined_is_said() -> None:
    three = [point("a", 1), point("b", 2), point("c", 3)]
    assert trade_off_findings(trade_off(three, joined=[("a", "b")])) == [
        "On the front by their means, the cheapest first: a, b and c.",
        "1 of the 2 pairs of neighbours on it is shown to differ and joined by a line (95 % sure, all lines together); "
        "1 cannot be told apart.",
    ]
    assert "No neighbours on it are joined, since they cannot be told apart." in trade_off_findings(trade_off(three))
    (alone,) = trade_off_findings(trade_off([point("a", 1), point("b", 2, place="behind the front")]))
    assert alone.startswith("a alone lies on the front")


def test_what_found_no_room_is_named() -> None:
    said = trade_off_findings(trade_off([point("a", 1)], no_room=["full"], unplaced=["odd"]))
    assert "One configuration has no score, since no run found room (marks at the right edge): full." in said
    assert "Scored, but not drawn since this cost is not known: odd." in said


def spec(some: TradeOff, decision: Decision) -> dict[str, Any]:
    chart = charts.trade_off(some, decision)
    assert chart is not None
    drawn: dict[str, Any] = chart.to_dict()
    return drawn


def scales(drawn: dict[str, Any], channel: str) -> list[dict[str, Any]]:
    return [layer["encoding"][channel]["scale"] for layer in drawn["layer"] if channel in layer["encoding"]]


def test_costs_that_span_much_are_drawn_on_a_logarithmic_axis(rented: Found) -> None:
    decision = replace(rented[2], rows=rows(rented[2], [0.5, 0.6]), limits=Limits(), chosen=None)
    for most, kind in ((19, "linear"), (21, "log")):
        drawn = spec(trade_off([point("a", GIB), point("b", most * GIB, 0.6)]), decision)
        assert {scale["type"] for scale in scales(drawn, "x")} == {kind}


def test_every_layer_draws_on_the_same_range(rented: Found) -> None:
    evidence, summary, decision = rented
    some = replace(along("memory", evidence, summary, decision), no_room=["tight"])
    drawn = spec(some, decision)
    assert len({str(scale["domain"]) for scale in scales(drawn, "x")}) == 1
    assert len({str(scale["domain"]) for scale in scales(drawn, "y")}) == 1


def test_a_limit_far_off_does_not_squeeze_the_points(rented: Found) -> None:
    decision = replace(rented[2], rows=rows(rented[2], [0.5, 0.6]), chosen=None)
    points = [point("a", 8 * GIB), point("b", 10 * GIB, 0.6)]
    near, far = (scales(spec(trade_off(points, limit=v * GIB), decision), "x")[0]["domain"][1] for v in (12, 80))
    assert near > 12
    assert far < 11
    assert "Dotted" in " ".join(trade_off_reading(trade_off(points, limit=12.0 * GIB), decision))


def test_sixty_points_keep_their_names_apart(rented: Found) -> None:
    many = [replace(rented[2].rows[0], arm=f"arm-{i}", quality=0.5) for i in range(63)]
    decision = replace(rented[2], rows=many, chosen=None, baseline="arm-0")
    points = [point(f"arm-{i}", GIB * (8 + i % 9), 0.3 + 0.01 * (i % 7), place="behind the front") for i in range(63)]
    drawn = spec(trade_off(points), decision)
    texts = [layer for layer in drawn["layer"] if layer["mark"]["type"] == "text"]
    named_ = [row for layer in texts for row in drawn["datasets"][layer["data"]["name"]]]
    assert len(named_) <= 1  # the baseline alone, where there is room for it
