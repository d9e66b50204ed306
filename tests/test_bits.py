"""What a study shows about bit-widths: the lowest one that holds, for the base, for training and for serving."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeRecord, MakeSpec
from scipy import stats
from test_docs import blocks, output_of

from harness import serving
from harness.bits import Bits, Question, answer, asks, bits_stored
from harness.compare import Refused, compare, matched, tables_of
from harness.errors import SpecError
from harness.intervals import difference, fixed, paired
from harness.methods.lora import Params
from harness.power import settle
from harness.record import Example, Record, Score, Speed
from harness.spec import Served, StudySpec
from harness.store import Store, StudyStore
from harness.trial import Timed, Trial

SEEDS = (101, 102, 103)
ITEMS = 400
AT = {"fp32": "fp32", "hqq8": "hqq8", "hqq4": "hqq4", "hqq2": "hqq2"}
Harm = Mapping[str, float]
SearchSpace = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True, "start": [1e-3]}}


class Fill:
    """A study on disk, written record by record. `answers` are of the items: 1 for a right one."""

    def __init__(self, root: Path, spec: StudySpec, make_record: MakeRecord) -> None:
        self.spec, self.make = spec, make_record
        self.store: StudyStore = Store(root).open(spec)

    def write(self, trial: Mapping[str, Any], answers: Any, kept: Any = None, **changes: Any) -> Record:
        fields = {"study": self.spec.name, "controls": self.spec.controls, "arm": "lora", "seed": 0, **trial}
        loss = changes.pop("loss", 0.4)
        scores, examples = [loss_score("validation_loss", loss), loss_score("test_loss", loss)], []
        for task, role, right in (("sums", "target", answers), ("facts", "retention", kept)):
            if right is not None:
                score = float(np.mean(right))
                scores.append(
                    Score(
                        task=task,
                        metric="acc",
                        value=score,
                        items=len(right),
                        role=role,
                        higher_is_better=True,
                        majority=0.1,
                    )
                )
                examples += [Example(task=task, metric="acc", example_id=f"{i}", score=a) for i, a in enumerate(right)]
        losses = changes.pop("losses", [loss, loss + 0.1, loss - 0.1])
        examples += [Example(task="test_loss", metric="loss", example_id=f"{i}", score=a) for i, a in enumerate(losses)]
        for name, rows in changes.pop("kl", {}).items():
            scores.append(loss_score(name, float(np.mean(rows)), "kl"))
            examples += [Example(task=name, metric="kl", example_id=f"{i}", score=a) for i, a in enumerate(rows)]
        values = {"scores": scores, "examples": examples, **changes}
        record = self.make(trial=fields, question_id=self.spec.question_id, **values)
        self.store.write(record)
        return record

    def base(self, name: str, answers: Any, kept: Any = None, **changes: Any) -> Record:
        zero = Trial.model_validate(
            {
                "study": self.spec.name, "arm": "zero-shot", "phase": "baseline", "seed": 0, "method": "none",
                "quantization": "fp32", "params": {}, "controls": self.spec.controls, "model_digest": "m0",
                "data_digest": "d0",
            }
        )  # fmt: skip
        trial = next(t for t in serving.of_base(self.spec, zero) if t.served is not None and t.served.name == name)
        return self.write(trial.model_dump(), answers, kept, **changes)

    def confirmed(self, arm: str, seed: int, answers: Any, **changes: Any) -> Record:
        quantization = self.spec.arms[arm].quantization
        params = {"learning_rate": 1e-3}
        trial = {"arm": arm, "phase": "confirm", "seed": seed, "quantization": quantization, "params": params}
        return self.write(trial, answers, **changes)

    def searched(self, arm: str) -> None:
        for rate, loss in ((1e-3, 0.4), (1e-2, 0.5)):
            trial = {"arm": arm, "phase": "search", "quantization": self.spec.arms[arm].quantization}
            self.write({**trial, "params": {"learning_rate": rate}}, None, loss=loss)

    def served(self, run: Record, name: str, way: str, answers: Any, **changes: Any) -> Record:
        some = serving.of_run(self.spec, run.trial)
        trial = next(t for t in some if (s := t.served) is not None and (s.name, s.way) == (name, way))
        return self.write(trial.model_dump(), answers, **changes)


def loss_score(name: str, value: float, metric: str = "loss") -> Score:
    return Score(task=name, metric=metric, value=value, items=3, role="loss", higher_is_better=False)


@pytest.fixture
def fill(tmp_path: Path, make_spec: MakeSpec, make_record: MakeRecord) -> Callable[..., Fill]:
    def make(at: Mapping[str, Any] = AT, quantizations: Sequence[str] = ("fp32",), **sections: Any) -> Fill:
        arms = {
            "lora" if q == "fp32" else f"lora-{q}": {"method": "lora", "quantization": q, "search": SearchSpace}
            for q in quantizations
        }
        serve = {"at": {k: v if isinstance(v, dict) else {"quantization": v} for k, v in at.items()}}
        spec = make_spec(
            arms=arms, serve=serve, confirm={"seeds": list(SEEDS)}, objective={"margin": 0.03}, name="s", **sections
        )
        return Fill(tmp_path, spec, make_record)

    return make


def flipped(right: Any, share: float, seed: int = 0) -> Any:
    """The same answers with this share of the items lost, as weights stored in fewer bits would lose them."""
    lost = np.random.default_rng(seed).permutation(len(right))[: round(share * len(right))]
    worse = np.array(right, float)
    worse[lost] = 0
    return worse


def only(found: Bits, kind: str, way: str | None = None) -> Question:
    (question,) = [q for q in found.questions if (q.kind, q.way) == (kind, way)]
    return question


def labels(question: Question, measure: int = 0) -> dict[str, str]:
    comparison = question.findings[measure].comparison
    assert comparison is not None
    return {v.arm: v.label for v in comparison.verdicts}


@pytest.fixture
def base(fill: Callable[..., Fill]) -> Fill:
    """A base that gets none of the target right, and loses what it can do as bits get fewer."""
    study = fill()
    kept = np.arange(ITEMS) % 20 > 0
    for name, share in (("fp32", 0.0), ("hqq8", 0.0), ("hqq4", 0.005), ("hqq2", 0.3)):
        study.base(name, np.zeros(ITEMS), flipped(kept, share), loss=4.0)
    return study


# the base


def test_the_lowest_bit_width_of_a_base_is_named_by_its_items(base: Fill) -> None:
    found = only(answer(base.store), "base")
    assert (found.answer, found.lowest) == ("shown", "hqq4")
    assert labels(found) == {"hqq8": "equivalent", "hqq4": "equivalent", "hqq2": "worse"}
    said = found.findings[0].sentence
    assert said.startswith("hqq4 is the lowest bit-width (5 bits stored) shown to be equivalent to fp32 within 0.03 of")
    assert "Over 400 items, hqq2" in said
    assert "seeds" not in said, "a base has none"
    assert "This is about this base" in said


def test_a_base_that_can_only_guess_has_nothing_to_lose(base: Fill) -> None:
    found = only(answer(base.store), "base")
    assert [f.measure.name for f in found.findings] == ["retention"]
    assert [s.split(":")[0] for s in found.skipped] == ["sums/acc", "test_loss"]
    assert found.skipped[0] == "sums/acc: fp32 is at 0, no more than the margin above a guess"


def test_the_loss_of_a_base_on_rows_it_never_learned_is_shown_and_not_judged(fill: Callable[..., Fill]) -> None:
    study = fill()
    for name, loss in zip(AT, (4.0, 3.9, 3.8, 3.5), strict=True):
        study.base(name, np.zeros(ITEMS), np.ones(ITEMS), loss=loss)
    found = only(answer(study.store), "base")
    assert [w.scores["test_loss"].mean for w in found.widths] == pytest.approx([4.0, 3.9, 3.8, 3.5])
    assert not any(w.odd for w in found.widths)


def test_what_could_not_lose_the_margin_is_no_evidence_of_equivalence(fill: Callable[..., Fill]) -> None:
    study = fill()
    for name, share in zip(AT, (0.88, 0.9, 0.9, 0.9), strict=True):  # a guess has 0.1, the margin is 0.03
        study.base(name, flipped(np.ones(ITEMS), share), np.ones(ITEMS))
    found = only(answer(study.store), "base")
    assert found.skipped[0] == "sums/acc: fp32 is at 0.12, no more than the margin above a guess"


def test_a_base_that_can_do_the_target_is_held_to_it_first(fill: Callable[..., Fill]) -> None:
    study = fill()
    for name in AT:
        study.base(name, np.ones(ITEMS), np.ones(ITEMS))
    found = only(answer(study.store), "base")
    assert [f.measure.name for f in found.findings] == ["sums/acc", "retention", "test_loss"]
    assert found.lowest == "hqq2"


def test_no_bit_width_is_equivalent_in_a_unit_without_a_margin(fill: Callable[..., Fill]) -> None:
    study = fill()
    for name, loss in zip(AT, (1.0, 1.0, 1.0, 1.2), strict=True):
        study.base(name, np.ones(ITEMS), loss=loss)
    loss = only(answer(study.store), "base").findings[1]
    assert "hqq2 (+0.200) is shown to be worse than fp32" in loss.sentence
    assert loss.measure.margin == 0
    assert "for which no margin is declared" in loss.sentence
    assert (loss.answer, loss.needed, loss.too_close) == ("open", [], [])


def test_where_every_narrower_one_is_worse_the_widest_is_the_answer(fill: Callable[..., Fill]) -> None:
    study = fill()
    for name, share in zip(AT, (0.0, 0.2, 0.3, 0.4), strict=True):
        study.base(name, flipped(np.ones(ITEMS), share))
    found = only(answer(study.store), "base")
    assert (found.answer, found.lowest) == ("widest", "fp32")
    assert "Every bit-width below fp32 is shown to be worse" in found.findings[0].sentence


def test_a_bit_width_that_was_not_run_leaves_the_question_open(fill: Callable[..., Fill]) -> None:
    study = fill()
    for name, share in (("fp32", 0.0), ("hqq8", 0.2)):
        study.base(name, flipped(np.ones(ITEMS), share))
    study.base("hqq4", None, status="out_of_memory", scores=[], examples=[])
    found = only(answer(study.store), "base")
    assert found.answer == "open", "hqq4 and hqq2 might hold"
    assert {w.name: w.lost for w in found.widths}["hqq4"] == {"out of memory": 1}


def test_before_the_widest_is_measured_nothing_is_said(fill: Callable[..., Fill]) -> None:
    study = fill()
    study.base("hqq8", np.ones(ITEMS))
    found = only(answer(study.store), "base")
    assert found.answer == "open"
    assert found.findings[0].sentence == "Not enough data: fp32 is not measured yet."


def test_what_would_settle_an_open_base_is_more_items(fill: Callable[..., Fill]) -> None:
    study = fill(at={"fp32": "fp32", "hqq4": "hqq4"})
    study.base("fp32", np.ones(ITEMS), seconds=36)
    study.base("hqq4", flipped(np.ones(ITEMS), 0.02), seconds=36)
    found = only(answer(study.store), "base").findings[0]
    assert found.answer == "open"
    (plan,) = found.needed
    assert (plan.name, plan.seeds) == ("hqq4", 1)
    assert plan.items > ITEMS
    # two evaluations of 0.01 h, on so many times the items
    assert plan.hours == pytest.approx(0.02 * plan.items / ITEMS)


def test_runs_of_different_versions_are_not_compared(fill: Callable[..., Fill]) -> None:
    study = fill()
    for name in AT:
        packages = {"packages": {"torch": "1.0" if name == "hqq4" else "2.0"}}
        study.base(name, np.ones(ITEMS), environment=packages)
    found = only(answer(study.store), "base")
    assert found.answer == "open"
    assert found.findings[0].sentence == "Nothing is shown yet: runs were made with different versions of torch."


def test_a_bit_width_that_meant_something_else_before_is_left_out(
    fill: Callable[..., Fill], base: Fill, tmp_path: Path
) -> None:
    later = fill(at={**AT, "hqq4": {"quantization": "hqq4", "params": {"group_size": 128}}})
    found = only(answer(later.store), "base")
    assert {w.name: w.runs for w in found.widths} == {"fp32": 1, "hqq8": 1, "hqq4": 0, "hqq2": 1}


# training


def test_arms_of_one_method_are_compared_by_seeds_and_items(fill: Callable[..., Fill]) -> None:
    study = fill(at={}, quantizations=("fp32", "hqq4", "hqq2"))
    for arm, share in (("lora", 0.0), ("lora-hqq4", 0.0), ("lora-hqq2", 0.5)):
        study.searched(arm)
        for seed in SEEDS:
            kl = {"kl_merged": [1e-9, 2e-9], "kl_requantized": [0.1, 0.3]} if arm != "lora" else {}
            study.confirmed(arm, seed, flipped(np.ones(ITEMS), share, seed), kl=kl)
    found = only(answer(study.store), "trained")
    assert (found.subject, found.reference, found.lowest) == ("lora", "lora", "lora-hqq4")
    assert labels(found) == {"lora-hqq4": "equivalent", "lora-hqq2": "worse"}
    assert "Over 400 items and 3 seeds" in found.findings[0].sentence
    (_, hqq4, _) = found.widths
    assert hqq4.divergence == pytest.approx({"kl_merged": 1.5e-9, "kl_requantized": 0.2})
    assert (hqq4.train_peak_bytes, hqq4.train_seconds) == (720, 1.5)


def test_between_declared_looks_no_bit_width_is_judged(fill: Callable[..., Fill]) -> None:
    study = fill(quantizations=("fp32", "hqq4"))
    for arm in study.spec.arms:
        study.searched(arm)
        for seed in SEEDS[:2]:
            run = study.confirmed(arm, seed, np.ones(ITEMS))
            if arm == "lora":
                for name in AT:
                    study.served(run, name, "merged", np.ones(ITEMS))
    found = answer(study.store)
    for question in (only(found, "trained"), only(found, "served", "merged")):
        assert question.answer == "open"
        assert "2 confirmed seeds per arm; the verdict is looked at after 3" in question.findings[0].sentence


# serving


def served_study(study: Fill, harm: Harm, noise: float = 0.1, ways: Sequence[str] = ("merged",)) -> None:
    """Runs that differ by up to `noise` in score, and lose so much at each bit-width, whatever the run."""
    study.searched("lora")
    for k, seed in enumerate(SEEDS):
        right = flipped(np.ones(ITEMS), noise * k, seed=50)
        run = study.confirmed("lora", seed, right)
        for name, share in harm.items():
            for way in ways:
                study.served(run, name, way, flipped(right, share * (1 if way == "merged" else 0), seed=9))


def test_what_varies_between_trainings_does_not_hide_what_serving_changes(fill: Callable[..., Fill]) -> None:
    study = fill(at={"fp32": "fp32", "hqq8": "hqq8"})
    served_study(study, {"fp32": 0.0, "hqq8": 0.0})
    found = only(answer(study.store), "served", "merged")
    assert found.lowest == "hqq8", "every run answers as before, however far the runs are apart"
    tables = [np.array([flipped(np.ones(ITEMS), 0.1 * k, seed=50) for k in range(3)])] * 2
    low, high = difference(*tables).bounds(0.05)
    assert low < -0.03 < 0.03 < high, "as arms that were trained apart they could not be told from worse"


def test_each_way_of_serving_has_its_own_answer_and_they_are_held_against_each_other(
    fill: Callable[..., Fill],
) -> None:
    study = fill(at={"fp32": "fp32", "hqq4": "hqq4", "hqq2": "hqq2"})
    served_study(study, {"fp32": 0.0, "hqq4": 0.0, "hqq2": 0.4}, ways=("merged", "adapter"))
    found = answer(study.store)
    assert only(found, "served", "merged").lowest == "hqq4"
    assert only(found, "served", "adapter").lowest == "hqq2"
    apart = {w.name: w.interval.high < 0 for w in found.ways}
    assert apart == {"fp32": False, "hqq4": False, "hqq2": True}


def test_only_models_of_judged_runs_count(fill: Callable[..., Fill]) -> None:
    study = fill(at={"fp32": "fp32", "hqq8": "hqq8"})
    served_study(study, {"fp32": 0.0, "hqq8": 0.0})
    other = study.write({"phase": "confirm", "seed": 101, "params": {"learning_rate": 1e-2}}, np.ones(ITEMS))
    study.served(other, "hqq8", "merged", np.zeros(ITEMS))
    found = only(answer(study.store), "served", "merged")
    assert [w.runs for w in found.widths] == [3, 3]
    assert found.lowest == "hqq8"


def test_a_seed_that_was_not_served_leaves_its_bit_width_open(fill: Callable[..., Fill]) -> None:
    study = fill(at={"fp32": "fp32", "hqq8": "hqq8"})
    study.searched("lora")
    for seed in SEEDS:
        run = study.confirmed("lora", seed, np.ones(ITEMS))
        study.served(run, "fp32", "merged", np.ones(ITEMS))
        if seed != 103:
            study.served(run, "hqq8", "merged", np.ones(ITEMS))
    found = only(answer(study.store), "served", "merged")
    assert found.answer == "open"
    assert "its seeds are not those of fp32" in found.findings[0].sentence


# what is unexpected, and what it costs


def test_a_narrower_one_that_does_better_than_a_wider_of_its_family_is_marked(fill: Callable[..., Fill]) -> None:
    study = fill()
    rows = np.linspace(0.9, 1.1, 50)
    for name, share, kl in (("fp32", 0.0, 0.0), ("hqq8", 0.2, 0.01), ("hqq4", 0.0, 0.02), ("hqq2", 0.4, 0.9)):
        study.base(name, flipped(np.ones(ITEMS), share), kl={"kl_unquantized": kl * rows})
    odd = {w.name: w.odd for w in only(answer(study.store), "base").widths}
    assert odd == {"fp32": [], "hqq8": [], "hqq4": ["better than hqq8 on sums/acc"], "hqq2": []}


def test_theory_orders_a_family_and_nothing_else(fill: Callable[..., Fill]) -> None:
    study = fill(at={"fp32": "fp32", "hqq8": "hqq8", "nf4": "nf4"})
    for name, share in (("fp32", 0.0), ("hqq8", 0.2), ("nf4", 0.0)):
        study.base(name, flipped(np.ones(ITEMS), share))
    assert not any(w.odd for w in only(answer(study.store), "base").widths), "nf4 is of another family than hqq8"


def test_more_scales_may_make_up_for_fewer_bits(fill: Callable[..., Fill]) -> None:
    study = fill(at={"fp32": "fp32", "hqq4": "hqq4", "hqq2": {"quantization": "hqq2", "params": {"group_size": 16}}})
    for name, share in (("fp32", 0.0), ("hqq4", 0.2), ("hqq2", 0.0)):
        study.base(name, flipped(np.ones(ITEMS), share))
    assert not any(w.odd for w in only(answer(study.store), "base").widths)


def test_rows_come_by_bits_as_stored(fill: Callable[..., Fill]) -> None:
    study = fill(at={"fp32": "fp32", "two": "hqq2", "nf4": "nf4", "eight": "hqq8"})
    for name in study.spec.serve.at:
        study.base(name, np.ones(ITEMS), stored_bytes=1000, disk_bytes=900)
    widths = only(answer(study.store), "base").widths
    assert [w.name for w in widths] == ["fp32", "eight", "nf4", "two"]
    assert [w.bits_stored for w in widths] == sorted([w.bits_stored for w in widths], reverse=True)
    assert {(w.stored_bytes, w.disk_bytes) for w in widths} == {(1000, 900)}


def test_bits_of_a_plugin_that_is_not_here_are_not_known() -> None:
    assert bits_stored(Served(quantization="of-another-package"), "fp32") is None
    assert bits_stored(Served(quantization="fp32"), "fp32") == 32


def test_speeds_stand_beside_the_widest(fill: Callable[..., Fill]) -> None:
    study = fill(
        at={"fp32": "fp32", "hqq8": "hqq8"},
    )
    study.base("fp32", np.ones(ITEMS))
    speeds = [
        Speed(
            served=name, batch=1, context=128, new_tokens=9, prefill_seconds=[s] * 3, decode_seconds=[2 * s] * 3,
            token_seconds=[s / 4] * 24, stored_bytes=1000,
        )
        for name, s in (("hqq8", 2.0), ("fp32", 1.0))
    ]  # fmt: skip
    timed = Timed(at=study.spec.serve.at, speeds={})
    trial = {"arm": "base@*", "phase": "speed", "method": "none", "params": {}, "timed": timed.model_dump()}
    study.write(trial, None, speeds=speeds)
    fp32, hqq8 = answer(study.store).speeds
    assert (fp32.served, hqq8.served) == ("fp32", "hqq8")
    assert fp32.prefill_tokens_per_second.value == 128
    assert hqq8.decode_ratio is not None
    assert hqq8.decode_ratio.value == 0.5


# which studies ask


def test_a_study_without_bit_widths_is_refused_by_name(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec()
    assert not asks(spec)
    with pytest.raises(SpecError, match="s asks nothing about bit-widths"):
        answer(Store(tmp_path).open(spec))


def test_arms_of_one_method_ask_when_their_quantizations_differ(make_spec: MakeSpec) -> None:
    arm = {"method": "lora", "search": SearchSpace}
    two = {"a": {**arm, "quantization": "fp32"}, "b": {**arm, "quantization": "nf4"}}
    assert asks(make_spec(arms=two))
    assert not asks(make_spec(arms=two), more_than=2)
    ranks = {"a": {**arm, "quantization": "fp32", "params": {"rank": 4}}, "b": {**arm, "quantization": "nf4"}}
    assert not asks(make_spec(arms=ranks)), "they differ in more than their bits"
    default = {"a": {**arm, "quantization": "fp32", "params": {"rank": Params().rank}}, "b": ranks["b"]}
    assert asks(make_spec(arms=default)), "a default that is spelled out is the same"


# the statistics of models that are stored in two ways


def test_a_fixed_model_has_the_noise_of_its_items_alone() -> None:
    a, b = np.array([[1.0, 1, 0, 1]]), np.array([[1.0, 0, 0, 1]])
    found = fixed(a, b)
    # d = 0, 1, 0, 0 with mean 1/4: (3/16 + 9/16 + 1) / (3 x 4)
    assert found.variance == pytest.approx(1.75 / 12)
    assert (found.value, found.df, found.seed_share) == (0.25, 3, 0)


def test_the_interval_worked_by_hand_is_the_one_of_the_code() -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "bits.md"
    found = fixed(np.array([[0.0, 1, 1, 0]]), np.array([[1.0, 1, 1, 0]]))
    low, high = found.bounds(0.05)
    assert found.variance == pytest.approx((0.75**2 + 3 * 0.25**2 + 1) / 12)
    half = stats.t.ppf(0.975, 3) * found.variance**0.5
    assert (low, high) == (pytest.approx(-0.25 - half), pytest.approx(-0.25 + half))
    text = page.read_text(encoding="utf-8")
    assert f"= {found.variance:.4f} with 3 degrees of freedom: -0.25 -+ {stats.t.ppf(0.975, 3):.3f} x 0.382" in text
    (code,) = blocks(page, "python")
    assert output_of(code) == f"{found.value:+.3f} [{low:+.3f}, {high:+.3f}]\n"


def test_what_all_seeds_share_cancels() -> None:
    a = np.array([[1.0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    found = paired(a, a)
    assert found.value == 0
    assert found.variance == pytest.approx(1 / 12), "the half item alone"
    assert difference(a, a).variance > 0.05 + found.variance


def test_how_the_difference_varies_between_seeds_stays() -> None:
    b = np.ones((2, 4))
    a = np.array([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    # seed means of d are 0 and -0.5, variance 0.125; residuals are +-0.25, so churn / n = (8 / 16) / 3 / 4 is less
    assert paired(a, b).a.seed_variance == 0.125


def test_the_error_at_the_margin_is_kept_where_seeds_are_shared() -> None:
    draw, wrong, studies = np.random.default_rng(0), 0, 400
    for _ in range(studies):
        right = (draw.random((3, 300)) < 0.8).astype(float)
        hit = np.clip(draw.normal(0.05, 0.02, 3), 0, 1)  # on the margin on average
        stored = right * (draw.random((3, 300)) >= hit[:, None] / 0.8)
        rows = [("wide", right), ("narrow", stored)]
        found = compare(frame(rows), "wide", 0.05, runs="shared")
        wrong += found["narrow"].label in {"equivalent", "worse"}
    assert wrong / studies <= 0.06, "either claim is false there, each may err in 2.5 of 100 studies"


def test_one_run_is_enough_only_where_nothing_was_drawn() -> None:
    one = frame([("wide", np.ones((1, 50))), ("narrow", np.ones((1, 50)))])
    assert compare(one, "wide", 0.1)["narrow"].reason == "one seed of narrow: noise between runs is unknown"
    assert compare(one, "wide", 0.1, runs="one")["narrow"].label == "equivalent"
    tables = tables_of(frame([("wide", np.ones((2, 50))), ("narrow", np.ones((2, 50)))]))
    with pytest.raises(Refused, match="2 runs of narrow"):
        matched(tables["narrow"], tables["wide"], ("narrow", "wide"), "one")


def test_no_seeds_are_asked_for_where_there_are_none() -> None:
    draw = np.random.default_rng(0)
    right = np.ones((1, 400))
    plan = settle(fixed(flipped(right[0], 0.02)[None, :], right), 0.03)
    assert plan is not None
    assert (plan.seeds, plan.items > 400) == (1, True)
    near = (draw.random((1, 100)) < 0.5).astype(float)
    assert settle(fixed(near, np.ones((1, 100))), abs(float(near.mean() - 1))) is None, "on the margin itself"


def frame(rows: Sequence[tuple[str, Any]]) -> Any:
    import pandas as pd

    return pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "example_id": f"{item:04}", "score": score}
            for arm, table in rows
            for seed, row in enumerate(table)
            for item, score in enumerate(row)
        ]
    )
