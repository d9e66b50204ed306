"""The simulator draws what it is asked for, its formulas are those of the interval, and goals can be missed."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeRecord, MakeSpec

from harness.cli import harness, run
from harness.goals import Goal, verdict_seconds
from harness.intervals import difference
from harness.record import Example
from harness.selfcheck import (
    RULES,
    Simulator,
    Tuning,
    World,
    errors,
    grid,
    largest_gap,
    looks_error,
    method_errors,
    parts,
    seed_noise_looks,
    stress,
)
from harness.store import Store

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("seeds", "cluster"), [((2, 2), 1), ((5, 3), 1), ((3, 3), 4)])
def test_many_studies_at_once_have_the_intervals_of_one_at_a_time(seeds: tuple[int, int], cluster: int) -> None:
    simulator = Simulator(World(items=90, cluster=cluster), 1)
    a, b = simulator.draw(6, max(seeds))
    a, b = a[:, : seeds[0]], b[:, : seeds[1]]
    found = parts(a, b, cluster)
    low, high = found.bounds(0.05)
    clusters = [f"c{i // cluster}" for i in range(90)] if cluster > 1 else None
    for k, quick in enumerate(found.differences()):
        one = difference(a[k], b[k], clusters)
        assert (low[k], high[k]) == pytest.approx(one.bounds(0.05))
        assert quick.bounds(0.05) == pytest.approx(one.bounds(0.05))
        assert (quick.a.churn, quick.b.seed_variance) == pytest.approx((one.a.churn, one.b.seed_variance))


def test_scores_that_are_not_answers_have_no_half_item() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 4, 3, 20))
    low, _ = parts(a, b, 1, half_item=0.0).bounds(0.05)
    assert low == pytest.approx([difference(x, y).bounds(0.05)[0] for x, y in zip(a, b, strict=True)])


def test_a_world_has_the_rates_it_was_made_with() -> None:
    world = World(accuracy=0.8, churn=0.12, across=0.2, seed_sd=(0.02, 0.02), items=2000, difference=0.03)
    a, b = Simulator(world, 0).draw(200, 4)
    assert a.mean() - b.mean() == pytest.approx(0.03, abs=0.003)
    assert b.mean() == pytest.approx(0.8, abs=0.003)
    assert (b[:, 0] != b[:, 1]).mean() == pytest.approx(0.12, abs=0.005)
    assert (a[:, 0] != b[:, 0]).mean() == pytest.approx(0.2, abs=0.01)
    churn = 0.12 / 2 / world.items  # what churn alone adds to the variance of a run's mean
    assert b.mean(2).var(1, ddof=1).mean() == pytest.approx(0.02**2 + churn, rel=0.1)


def test_runs_that_collapse_are_part_of_the_true_mean() -> None:
    a, b = Simulator(World(collapse=(0.2, 0.1), seed_sd=(0.001, 0.001)), 0).draw(300, 8)
    assert (b.mean(), a.mean()) == pytest.approx((0.5, 0.51), abs=0.004)
    assert b.mean(2).min() < 0.45


def test_the_grid_is_the_one_of_the_protocol() -> None:
    assert len(grid()) == 24
    assert {w.items for w in grid()} == {200, 500, 1000, 2000}
    assert len(stress()) == 8


def test_the_verdict_errs_less_than_promised_where_naive_rules_do_not() -> None:
    found = errors(World(items=1000, seed_sd=(0.015, 0.015)), 400, (3,), tuple(RULES), seed=1)
    ours = found[3, "ours"]
    assert ours.worse_side <= 0.04  # standard error 0.008
    assert ours.coverage >= 0.93
    means = found[3, "higher mean wins"]
    assert means.better + means.not_better == pytest.approx(1.0)
    assert found[3, "items of one seed"].worse_side > 0.05


def test_clusters_that_are_not_labelled_are_taken_for_evidence() -> None:
    found = errors(World(cluster=10, items=1000), 300, (3,), ("ours", "unlabelled"))
    assert found[3, "ours"].worse_side <= 0.05
    assert found[3, "unlabelled"].worse_side > 0.1


def test_looking_often_errs_more_unless_alpha_is_split() -> None:
    naive = seed_noise_looks((3, 5, 8), (0.05,) * 3, 50_000, 7)
    split = seed_noise_looks((3, 5, 8), (0.0158,) * 3, 50_000, 7)
    assert sum(naive) > 0.09
    assert sum(split) <= 0.052
    assert sum(looks_error(World(items=500), (3, 5), (0.0226, 0.0226), 200)) <= 0.06


def test_seeds_of_one_tuned_winner_err_about_its_method() -> None:
    tunings = Tuning(cost=0.03), Tuning(cost=0.12)
    world = World(items=3000)
    assert method_errors(world, tunings, 3, 1, 300).worse_side <= 0.05
    assert method_errors(world, tunings, 1, 8, 300).worse_side > 0.06


def test_the_gap_of_predictions_is_the_largest_over_full_bins() -> None:
    predicted = np.repeat([0.05, 0.55, 0.95], [100, 100, 3])
    came = np.array([True] * 10 + [False] * 90 + [True] * 30 + [False] * 73)
    # 0.05 predicted and 0.10 came; 0.55 and 0.30; the last bin is too small to count
    assert largest_gap(predicted, came) == pytest.approx(0.25)


def test_a_verdict_over_ten_arms_is_quick() -> None:
    assert verdict_seconds() < 1.0  # 0.05 s on a free core; the goal of 0.2 s is checked by `harness selfcheck stats`


def test_a_goal_is_met_on_its_own_side() -> None:
    assert Goal("G1", "errors", 0.02, 0.03).met
    assert not Goal("G1", "errors", 0.04, 0.03).met
    assert Goal("G4", "coverage", 0.96, 0.945, at_most=False).met
    assert not Goal("G7", "kept", float("nan"), 0.7, at_most=False).met


def test_selfcheck_prints_every_goal_with_naive_rules_beside(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(harness, ["selfcheck", "stats", "--reps", "20", "--json"])
    out, err = capsys.readouterr()
    answer: dict[str, Any] = json.loads(out)
    assert {g["number"] for g in answer["goals"]} == {f"G{i}" for i in range(1, 12)} - {"G3"}
    assert caught.value.code == (1 if answer["missed"] else 0)
    assert answer["missed"] == sum(not g["met"] for g in answer["goals"])
    first = answer["goals"][0]
    assert first["naive"]["higher mean wins"] > first["figure"]
    assert "G2: 8 stress scenarios" in err


def test_real_runs_are_drawn_from_a_store(
    tmp_path: Path,
    make_spec: MakeSpec,
    make_record: MakeRecord,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    store = Store(tmp_path).open(make_spec(name="tiny-seeds"))
    for number, (arm, rate) in enumerate((("full", 0.8), ("full-hot", 0.4))):
        for seed in range(12):
            examples = [
                Example(task="sums", metric="exact_match", example_id=str(i), score=float(rng.random() < rate))
                for i in range(30)
            ]
            trial = {"arm": arm, "phase": "confirm", "seed": seed}
            store.write(make_record(trial_id=f"{number}-{seed}", trial=trial, examples=examples))
    script = ROOT / "benchmarks" / "verdict_errors.py"
    asked = [str(script), "--only-pools", "--reps", "50", "--pools", str(tmp_path / "tiny-seeds")]
    for least, words in (("12", "full, sums/exact_match: 12 seeds x 30 items"), ("100", "G3 skipped")):
        monkeypatch.setattr(sys, "argv", [*asked, "--least-seeds", least])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(script), run_name="__main__")
        out = capsys.readouterr().out
        assert caught.value.code in (0, 1)
        assert words in out
    assert "G3" in out
