"""`harness plan`: what is printed, for whom, and what it does not load."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from conftest import MakeRecord, MakeSpec
from test_cli import ends_with

from harness import environment
from harness.budget import Plan
from harness.cli._bars import FILLS, Pen, bars, cells
from harness.forecast import processors
from harness.record import Forecast, Interval, Stage
from harness.store import Store

LLAMA = ("plan", "llama2-7b-methods", "--gpu", "RTX 4090")


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Eighty columns, an empty store and an empty cache of the hub."""
    from huggingface_hub import constants

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("HARNESS_STORE", str(tmp_path / "results"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert ends_with(*arguments) == code
    return capsys.readouterr().out


def test_a_plan_names_arms_memory_fit_hours_and_money(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, *LLAMA)
    assert out.startswith("llama2-7b-methods on one RTX 4090 (23.6 GiB, ")
    interval = r"[\d.]+ \[[\d.]+-[\d.]+\]"
    for arm in ("full", "lora", "lora-int8", "qlora-nf4"):
        assert re.search(rf"^{arm} +(bf16|int8|nf4) +(yes|likely|uncertain|no) +5\+3 +{interval} ", out, re.M), arm
    assert re.search(r"^full .* no .*- +-$", out, re.M)
    assert re.search(rf"^qlora-nf4 .* yes .*{interval} +{interval} +[\d.]+$", out, re.M)
    assert re.search(rf"^total +\d+ +{interval} +[\d.]+$", out, re.M)
    assert "full does not fit: its runs are recorded as such and not made" in out
    assert out.endswith("Nothing was loaded. Start: harness study llama2-7b-methods\n")


@pytest.mark.parametrize("study", [LLAMA, ("plan", "tiny-methods"), ("plan", "tiny-methods-claim", "--gpu", "24 GB")])
def test_a_plan_fits_eighty_columns(capsys: pytest.CaptureFixture[str], study: tuple[str, ...]) -> None:
    out = printed(capsys, *study)
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "\x1b" not in out  # no colour where the output is no terminal


def test_the_json_is_the_whole_plan(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan.model_validate_json(printed(capsys, *LLAMA, "--json"))
    assert [arm.arm for arm in plan.arms] == ["full", "lora", "lora-int8", "qlora-nf4"]
    assert plan.processor.name == "RTX 4090"
    assert plan.arms[1].confirm.components["embeddings, head, norms"] > 0


def test_overrides_change_the_plan_and_are_in_the_command_that_starts_it(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, *LLAMA, "arms.full=null", "objective.baseline=lora", "confirm.seeds=[1, 2]")
    assert re.search(r"^lora .* 5\+2 ", out, re.M)
    assert not re.search(r"^full ", out, re.M)
    # to be copied, so on one line however long
    assert (
        "\n    harness study llama2-7b-methods arms.full=null objective.baseline=lora 'confirm.seeds=[1, 2]'\n" in out
    )


def test_what_would_make_an_arm_fit_is_ready_to_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("plan", "llama2-7b-methods", "--gpu", "16 GB", "arms.full=null", "objective.baseline=lora")
    out = " ".join(printed(capsys, *arguments).split())
    found = re.search(r"lora does not fit: .* The nearest that fits, [\d.]+ GiB: (\S+=\S+)", out)
    assert found is not None
    again = printed(capsys, *arguments, found[1])
    assert re.search(r"^lora +\S+ +(yes|likely) ", again, re.M)


def test_a_study_that_needs_a_gpu_is_not_planned_on_a_machine_without_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processors, "here", lambda: processors.find("cpu"))
    assert ends_with("plan", "llama2-7b-methods") == 2
    err = capsys.readouterr().err
    assert "needs a GPU" in err
    assert 'harness plan llama2-7b-methods --gpu "RTX 4090"' in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("plan",), "Missing argument 'STUDY'"),
        (("plan", "tiny-method"), "did you mean tiny-methods?"),
        (("plan", "tiny-methods", "--gpu", "RTX 4091"), "no GPU 'RTX 4091'; did you mean"),
        (("plan", "tiny-methods", "controls.train.batchs=3"), "did you mean batch?"),
        (("plan", "tiny-methods", "controls.data.path=./none.jsonl"), "no file './none.jsonl'"),
        (("plan", "tiny-methods", "controls.model.id=someone/unheard-of"), "no config of 'someone/unheard-of'"),
        (("plan", "tiny-methods", "arms.full.quantization=int8"), "cannot train a base stored in int8"),
        (("plan", "--score", "nothing"), "no study 'nothing'"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    assert ends_with(*arguments) == 2
    out, err = capsys.readouterr()
    assert told in err and "Traceback" not in err
    assert out == ""


def test_planning_loads_no_library_that_trains() -> None:
    code = (
        "import sys\nfrom harness.cli import harness, run\n"
        f"try: run(harness, {list(LLAMA)!r})\n"
        "except SystemExit as end: print(end.code, sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ended, _, modules = done.stderr.partition(" ")
    assert ended == "0"
    assert not set(eval(modules)) & {"torch", "transformers", "datasets", "pandas", "pyarrow", "rich", "optuna"}


def test_an_empty_store_says_what_fills_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = printed(capsys, "plan", "--score")
    assert (
        out
        == f"no runs in {tmp_path / 'results'}; make some: harness study tiny-methods --store {tmp_path / 'results'}\n"
    )


def test_forecasts_are_scored_over_the_whole_store(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, make_spec: MakeSpec, make_record: MakeRecord
) -> None:
    seconds = Interval(low=9, mid=10, high=11)
    forecast = Forecast(
        allocated_bytes=Interval(low=700, mid=720, high=800), peak_phase="x", device="cpu", fits="yes",
        stage_seconds={"train": seconds}, seconds=seconds,
    )  # fmt: skip
    store = Store(tmp_path / "results").open(make_spec(name="s"))
    for seed, measured in ((101, 10.0), (102, 12.5)):
        stages = [Stage(stage="train", seconds=measured)]
        store.write(make_record(trial={"seed": seed}, forecast=forecast, seconds=measured, stages=stages))
    store.write(make_record(trial={"seed": 103}))
    out = printed(capsys, "plan", "--score")
    # off by 0 and -20 %: 10 s lie between 9 and 11, 12.5 s do not
    assert re.search(r"^train +2 +10.0 % +-10.0 % +19.0 % +20.0 % +50 %$", out, re.M)
    assert re.search(r"^allocated +2 +0.0 % ", out, re.M)  # 400 + 40 + 80 + 200 bytes were measured
    assert "fits or not: 100 % right of 2" in out
    assert "not scored: 1 no forecast" in out
    scored = json.loads(printed(capsys, "plan", "s", "--score", "--json"))
    assert scored["records"] == 3 and scored["unscored"] == {"no forecast": 1}


def test_finished_runs_sharpen_the_times(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, make_spec: MakeSpec, make_record: MakeRecord
) -> None:
    study = Path(__file__).parent.parent / "studies" / "tiny-methods.yaml"
    assert "Times: by the table of processors alone" in printed(capsys, "plan", str(study))
    store = Store(tmp_path / "results").open(make_spec(name="s"))
    store.write(make_record(environment={"cpu": "another CPU"}))
    assert "Times: by the table of processors alone" in printed(capsys, "plan", str(study))
    store.write(make_record(attempt=2, environment={"cpu": environment.cpu_name()}))
    assert "Times: sharpened by 1 run on cpu" in printed(capsys, "plan", str(study))


def test_cells_add_up_to_the_whole_bar() -> None:
    assert cells([1.0, 1.0, 1.0], 10 / 3) == [4, 3, 3]
    assert cells([0.4, 0.4, 0.4], 1) == [1, 0, 0]
    assert cells([], 1) == []


def test_a_bar_shows_parts_by_size_and_where_the_card_ends() -> None:
    line, *legend = bars(
        {"arm": {"weights": 10.0, "rest": 10.0}}, limit=40.0, unit=1.0, width=54, pen=Pen(colour=False)
    )
    # 40 columns for 40: width 54 less the name, two gaps, the number and one column for the mark
    assert line == f"arm  {FILLS[0] * 10}{FILLS[1] * 10}{' ' * 20}│    20.0"
    assert legend == [f"     {FILLS[0]} weights  {FILLS[1]} rest  │ card 40.0"]


def test_parts_too_small_to_see_are_shown_together() -> None:
    parts = {"large": 100.0, **{f"small {i}": 0.3 for i in range(10)}}
    text = "\n".join(bars({"arm": parts}, None, 1.0, 60, Pen(colour=False)))
    assert "other" in text and "small" not in text
    assert "103.0" in text


def test_colour_tells_parts_apart_where_it_is_on_and_fills_where_it_is_off() -> None:
    rows = {"arm": {"one": 5.0, "two": 5.0}}
    coloured = bars(rows, None, 1.0, 60, Pen(colour=True))[0]
    assert len(set(re.findall(r"\x1b\[(3\d)m", coloured))) == 2
    assert set(click.unstyle(coloured).split()[1]) == {"█"}
    assert set(bars(rows, None, 1.0, 60, Pen(colour=False))[0].split()[1]) == set(FILLS[:2])
    plain = "".join(bars(rows, 3.0, 1.0, 60, Pen(colour=False, unicode=False)))
    assert plain.isascii()


def test_a_study_whose_arms_cannot_be_compared_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, *LLAMA)  # full, which the others are compared with, does not fit
    assert "this plan can show no difference: what is compared does not fit" in out.replace("\n  ", " ")
    alone = printed(capsys, *LLAMA[:2], "--gpu", "H200")
    assert "This plan can show a difference of" in alone


def test_a_misspelt_optimizer_is_refused_before_anything_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with(*LLAMA, "controls.train.optimizer=adamw_torch_fussed") == 2
    assert "did you mean adamw_torch_fused?" in capsys.readouterr().err


def test_an_optimizer_that_is_not_modelled_is_planned_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    assert "what galore_adamw keeps is not known here" in printed(
        capsys, *LLAMA, "controls.train.optimizer=galore_adamw"
    )


def test_a_card_without_the_asked_dtype_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "T4 has no units for bf16" in printed(capsys, *LLAMA[:2], "--gpu", "T4")
    assert "no units for" not in printed(capsys, *LLAMA[:2], "--gpu", "T4", "controls.train.compute_dtype=fp16")


def test_a_bare_number_is_taken_for_a_size_that_lacks_its_unit(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with(*LLAMA[:2], "--gpu", "24") == 2
    assert "a card of that size is '24 GB'" in capsys.readouterr().err


def test_options_that_a_score_would_ignore_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with("plan", "tiny-methods", "--score", "--gpu", "H100") == 2
    assert "leave out --gpu" in capsys.readouterr().err
