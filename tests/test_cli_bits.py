"""`harness bits`: the answers and their tables, on a store made of records."""

import json
from collections.abc import Callable

import numpy as np
from test_bits import AT, ITEMS, SEEDS, Fill, fill, flipped
from test_cli_results import Ask, ask

from harness import reproduce

__all__ = ["ask", "fill"]  # fixtures


def whole_study(fill: Callable[..., Fill], **sections: object) -> Fill:
    """A study that asks all three questions, and loses at two bits alone."""
    study = fill(quantizations=("fp32", "hqq4", "hqq2"), **sections)
    harm = {"fp32": 0.0, "hqq8": 0.0, "hqq4": 0.0, "hqq2": 0.4}
    for name in AT:
        study.base(name, flipped(np.ones(ITEMS), harm[name]), stored_bytes=3 << 20, kl={"kl_unquantized": [0.1, 0.3]})
    for arm in study.spec.arms:
        study.searched(arm)
        for seed in SEEDS:
            run = study.confirmed(arm, seed, flipped(np.ones(ITEMS), harm[study.spec.arms[arm].quantization], seed))
            for name in AT if arm == "lora" else ():
                for way in ("merged", "adapter"):
                    study.served(run, name, way, flipped(np.ones(ITEMS), harm[name], seed))
    return study


def test_every_question_is_answered_within_80_columns(ask: Ask, fill: Callable[..., Fill]) -> None:
    whole_study(fill)
    code, out, _ = ask("bits")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    said = " ".join(out.split())
    assert "The base, stored at each bit-width" in said
    assert "lora trained on each bit-width" in said
    assert "lora-hqq4 is the lowest bit-width (5 bits stored) shown to be equivalent to lora" in said
    assert "lora served at each bit-width, merged and then stored" in said
    assert "its adapter beside the stored base" in said
    assert said.count("hqq4 is the lowest bit-width") == 4
    assert "merged and adapter are not shown to differ at every bit-width" not in said
    assert "merged and adapter are not shown to differ at any bit-width" in said


def test_a_row_has_bits_scores_difference_verdict_and_size(ask: Ask, fill: Callable[..., Fill]) -> None:
    whole_study(fill)
    rows = [line.split() for line in ask("bits")[1].splitlines()]
    first = [row for row in rows if row[:1] == ["hqq2"]][:2]
    # 400 of 400 against 240 of 400: the interval is that of the items alone
    assert first[0][:7] == ["hqq2", "3", "0.400", "0.600", "±", "0.048", "-0.400"]
    assert first[0][-1] == "worse"
    assert first[1] == ["hqq2", "0.2000", "3.0", "MiB", "-"]


def test_what_is_not_measured_is_a_dash(ask: Ask, fill: Callable[..., Fill]) -> None:
    study = fill()
    study.base("fp32", np.ones(ITEMS))
    study.base("hqq8", None, status="does_not_fit", scores=[], examples=[])
    code, out, err = ask("bits", "s")
    assert code == 5
    rows = [line.split() for line in out.splitlines()]
    assert ["hqq8", "9", "-", "-", "-", "does", "not", "fit"] in rows
    assert ["hqq4", "5", "-", "-", "-", "not", "run"] in rows
    assert f"go on with: {reproduce.study(study.store)}" in err


def test_json_has_answers_verdicts_and_what_would_settle_them(ask: Ask, fill: Callable[..., Fill]) -> None:
    whole_study(fill)
    code, out, _ = ask("bits", "--json")
    found = json.loads(out)
    assert code == 0
    assert [(q["kind"], q["way"], q["answer"], q["lowest"]) for q in found["questions"]] == [
        ("base", None, "shown", "hqq4"),
        ("trained", None, "shown", "lora-hqq4"),
        ("served", "merged", "shown", "hqq4"),
        ("served", "adapter", "shown", "hqq4"),
    ]
    verdict = found["questions"][0]["findings"][0]["comparison"]["verdicts"][0]
    assert verdict["label"] == "equivalent"
    assert verdict["interval"]["low"] < 0 < verdict["interval"]["high"]


def test_an_open_question_ends_with_5_and_what_would_settle_it(ask: Ask, fill: Callable[..., Fill]) -> None:
    study = fill(at={"fp32": "fp32", "hqq4": "hqq4"})
    study.base("fp32", np.ones(ITEMS))
    study.base("hqq4", flipped(np.ones(ITEMS), 0.02))
    code, out, _ = ask("bits")
    assert code == 5
    said = " ".join(out.split())
    assert "No bit-width below fp32 is shown to be equivalent to it within 0.03 of sums/acc" in said
    assert "to settle hqq4: 2000 items" in said
    assert "name=s-next" in said


def test_an_empty_store_names_the_command_that_fills_it(ask: Ask) -> None:
    code, _, err = ask("bits")
    assert code == 2
    assert "harness study tiny-bits --store" in err


def test_a_study_about_something_else_is_sent_to_show(ask: Ask, fill: Callable[..., Fill]) -> None:
    fill(at={})
    code, _, err = ask("bits", "s")
    assert code == 2
    assert "no method on several quantizations" in err
    assert "do: harness show s" in err


def test_an_odd_bit_width_is_marked_in_its_row(ask: Ask, fill: Callable[..., Fill]) -> None:
    study = fill(at={"fp32": "fp32", "hqq8": "hqq8", "hqq4": "hqq4"})
    for name, share in (("fp32", 0.0), ("hqq8", 0.2), ("hqq4", 0.0)):
        study.base(name, flipped(np.ones(ITEMS), share))
    out = ask("bits")[1]
    assert "equivalent, odd" in out
    assert "odd: hqq4 does better than hqq8 on sums/acc, which theory does not expect" in out


def test_a_study_of_bit_widths_ends_with_their_answers(ask: Ask, fill: Callable[..., Fill], capsys: "object") -> None:
    from harness.cli.study import _bits

    study = whole_study(fill)
    _bits(study.store, study.spec)
    out, err = capsys.readouterr()  # type: ignore[attr-defined]
    assert out.count("is the lowest bit-width") == 4
    assert len(out.strip().splitlines()) == 4, "one line for each question"
    assert "harness bits s" in err
