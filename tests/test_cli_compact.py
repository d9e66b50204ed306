"""`harness compact`, and what `harness study` does of it at its end."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MakeRecord, MakeSpec
from stores import ARMS, generate

from harness.cli import harness, run
from harness.cli.compact import MANY, compact_if_long
from harness.store import Store

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ask:
    """Run a command on the store; its exit code, what it printed and what it said on the side."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(harness, [*arguments, "--store", str(tmp_path)])
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return call


def test_a_study_is_compacted_and_says_so(
    ask: Ask, tmp_path: Path, make_spec: MakeSpec, make_record: MakeRecord
) -> None:
    store = Store(tmp_path).open(make_spec())
    for seed in (1, 2):
        store.write(make_record(trial={"seed": seed}))
    before = store.records()
    code, out, err = ask("compact", "s")
    assert (code, err) == (0, "")
    assert out.startswith("s: 2 runs merged, 12 files into one per table, ")
    assert store.records() == before
    assert ask("compact", "s")[1] == "s: nothing to merge\n"


def test_what_was_compacted_is_told_as_json(
    ask: Ask, tmp_path: Path, make_spec: MakeSpec, make_record: MakeRecord
) -> None:
    record = make_record()
    for name in ("one", "two"):
        Store(tmp_path).open(make_spec(name=name)).write(record)
    broken = tmp_path / "two" / "steps" / f"{record.trial_id}-1.parquet"
    broken.write_bytes(b"")
    code, out, err = ask("compact", "--json")
    one, two = json.loads(out)
    assert code == 0
    assert (one["study"], one["runs"], one["files"], one["left"]) == ("one", 1, 6, [])
    assert one["bytes_before"] > 0 < one["bytes_after"]
    assert (two["files"], [left["path"] for left in two["left"]]) == (5, [str(broken)])
    assert str(broken) in err


def test_a_study_that_is_running_is_refused(
    ask: Ask, tmp_path: Path, make_spec: MakeSpec, make_record: MakeRecord
) -> None:
    store = Store(tmp_path).open(make_spec())
    store.write(make_record())
    Store(tmp_path).open(make_spec(name="other")).write(make_record())
    with store.alone():
        code, out, err = ask("compact", "s")
        assert (code, out) == (2, "")
        assert "another command is running study s" in err
        code, out, err = ask("compact")  # the others do not wait for it
        assert code == 0
        assert out.startswith("other: 1 run merged")
        assert "s is left as it is" in err
    assert store.files() == 1
    assert ask("compact", "s")[0] == 0
    assert store.files() == 0


def test_a_long_study_is_compacted_at_its_end_and_a_short_one_is_not(tmp_path: Path) -> None:
    arms = {"lora": ARMS["lora"]}
    short, long = (
        generate(tmp_path, name, runs, arms=arms, seeds=1, items=1, tuning_items=1, kinds=("does_not_fit",))
        for name, runs in (("short", MANY), ("long", MANY + 1))
    )
    assert compact_if_long(short) is None
    done = compact_if_long(long)
    assert done is not None
    assert done.did.runs == MANY + 1
    assert (short.files(), long.files()) == (MANY, 0)


def test_a_study_file_that_is_broken_hides_no_other_study(
    ask: Ask, tmp_path: Path, make_spec: MakeSpec, make_record: MakeRecord
) -> None:
    for name in ("bad", "good"):
        Store(tmp_path).open(make_spec(name=name, question="Is it?")).write(make_record())
    (tmp_path / "bad" / "study.yaml").write_text("arms: [", encoding="utf-8")
    bad, good = json.loads(ask("show", "--json")[1])
    assert good == {"study": "good", "runs": 1, "question": "Is it?", "origin": None}
    assert (bad["study"], bad["runs"]) == ("bad", None)
    assert "cannot be read" in bad["question"]
