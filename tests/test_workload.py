"""How many rows there are, how long they are and what tasks ask, without the libraries that train."""

import json
from pathlib import Path

import pytest
from conftest import MakeRecord

from harness import data, sources, workload
from harness.errors import DataError
from harness.spec import Controls, DataSource, Evaluation, ModelSource, Training
from harness.workload import Rows, asked_of, items_of, rows_of

REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "real"


def controls(data_path: str = "tiny", model: str = "tiny", max_length: int = 128, **evaluate: object) -> Controls:
    return Controls(
        model=ModelSource(id=model),
        data=DataSource(path=data_path),
        train=Training(max_length=max_length),
        evaluate=Evaluation.model_validate(evaluate),
    )


def rows(*lengths: int) -> Rows:
    return Rows(train=100, validation=10, test=10, lengths=lengths, longest=max(lengths), source="made up")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub in place of this machine's."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_batch_is_as_long_as_its_longest_row() -> None:
    # of two draws from (2, 4) both are 2 with probability 1/4: 2/4 + 4 * 3/4
    assert rows(2, 4).padded(2) == pytest.approx(3.5)
    assert rows(2, 4).padded(1) == rows(2, 4).mean == 3
    assert rows(2, 4).padded(1000) == pytest.approx(4)


def test_rows_can_be_cut_shorter_but_not_made_longer() -> None:
    assert rows(2, 4, 8).cut(4).lengths == (2, 4, 4)
    assert rows(2, 4, 8).cut(4).longest == 4
    assert rows(2, 4).cut(100) == rows(2, 4)


def test_lengths_are_those_of_the_tokenizer_that_training_uses(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    settings = controls()
    found = sources.find_data(settings.data)
    prepared = data.prepare(settings.data, found, AutoTokenizer.from_pretrained(workload.tiny.MODEL), 128, tmp_path)
    lengths = [len(row.ids) for row in prepared.train]
    measured = rows_of(settings)
    assert (measured.train, measured.validation, measured.test) == (1600, 200, 200)
    assert measured.longest == max(lengths)
    # 500 of 1,600 rows: the mean is known to a few hundredths of itself
    assert measured.mean == pytest.approx(sum(lengths) / len(lengths), rel=0.03)
    assert not measured.doubts


def test_every_row_of_a_small_file_is_tokenized(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"question {i}", "completion": "yes " * i}) for i in range(1, 61)))
    source = DataSource(path=str(file), validation_rows=10, test_rows=10)
    found = rows_of(controls().model_copy(update={"data": source}))
    assert (found.train, found.validation, found.test) == (40, 10, 10)
    assert len(found.lengths) == 40
    assert found.source == "40 rows tokenized"


def test_the_longest_row_is_found_though_it_is_not_in_the_sample(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    texts = [{"prompt": f"q{i}", "completion": "a" * (1000 if i == 77 else 3)} for i in range(3000)]
    file.write_text("\n".join(json.dumps(t) for t in texts))
    source = DataSource(path=str(file), validation_rows=1, test_rows=1)
    found = rows_of(Controls(model=ModelSource(id="tiny"), data=source, train=Training(max_length=512)))
    assert found.longest > 10 * found.mean


def test_without_a_tokenizer_lengths_are_estimated_and_doubted(tmp_path: Path, hub_cache: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"{i:03} " + "x" * 31}) for i in range(100)))
    source = DataSource(path=str(file), validation_rows=10, test_rows=10)
    found = rows_of(Controls(model=ModelSource(id="someone/model"), data=source))
    assert found.mean == 10  # 35 characters at 3.5 each
    assert found.shortest_mean == 7.5
    assert found.doubts == ("no tokenizer of someone/model at hand: 3.5 characters per token are assumed",)


def test_rows_of_the_hub_that_are_not_here_count_as_long_as_they_may_be(hub_cache: Path) -> None:
    found = rows_of(controls("timdettmers/openassistant-guanaco", max_length=512))
    assert found.train == 9_846 - 400
    assert found.mean == found.longest == 512
    assert "is not at hand: every row is taken to have 512 tokens" in found.doubts[0]


def test_the_number_of_rows_is_doubted_too_where_nothing_tells_it(hub_cache: Path) -> None:
    found = rows_of(controls("someone/data"))
    assert found.train == workload.ROWS_UNKNOWN - 400
    assert "its rows are not known" in found.doubts[1]
    limited = controls().model_copy(update={"data": DataSource(path="someone/data", rows=1000)})
    assert rows_of(limited).train == 600
    assert len(rows_of(limited).doubts) == 1


def test_a_data_set_in_the_hubs_cache_is_read_there(hub_cache: Path) -> None:
    folder = hub_cache / "datasets--someone--data"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    for split, count in (("train", 50), ("test", 5)):
        lines = [json.dumps({"prompt": f"{split} {i}", "completion": "yes"}) for i in range(count)]
        (folder / "snapshots" / "abc" / f"{split}.jsonl").write_text("\n".join(lines))
    source = DataSource(path="someone/data", validation_rows=10, test_rows=10)
    assert rows_of(controls().model_copy(update={"data": source})).train == 30


def test_earlier_runs_tell_mean_and_padding_of_rows_that_are_not_here(hub_cache: Path, make_record: MakeRecord) -> None:
    settings = Controls(
        model=ModelSource(id="tiny"), data=DataSource(path="someone/data"), train=Training(batch=16, micro_batch=4)
    )
    record = make_record(trial={"controls": settings}, data={"rows": {"train": 700, "validation": 9}, "cut": 0})
    assert record.train is not None
    # 10 steps of 16 rows: 30 tokens each, a quarter of the positions padding, so 40 positions each
    train = record.train.model_copy(update={"steps": 10, "tokens": 4800, "padded_share": 0.25})
    found = rows_of(settings, [record.model_copy(update={"train": train})])
    assert (found.train, found.validation, found.test) == (700, 9, 0)
    assert found.mean == pytest.approx(30, abs=0.5)
    assert found.padded(4) == pytest.approx(40, abs=0.5)
    assert found.source == "earlier runs of tiny-methods"
    longer = settings.model_copy(update={"train": Training(batch=16, micro_batch=4, max_length=2048)})
    assert rows_of(longer, [record]).source == "assumed"  # other lengths: they say nothing


def test_a_data_file_that_is_missing_is_a_mistake_and_no_data_set_of_the_hub() -> None:
    with pytest.raises(DataError, match=r"no file './rows.jsonl'"):
        rows_of(controls("./rows.jsonl"))


def test_the_embedded_tasks_are_counted_in_their_files() -> None:
    asked, doubts = asked_of(controls())
    by_requests = {one.requests: one for one in asked}
    assert by_requests[8].items == 300  # tiny_facts: eight answers to choose from
    assert by_requests[8].generated == 0
    assert by_requests[1].generated == 14
    assert not doubts
    assert items_of("tiny_facts", controls(limit=50)) == 50


def test_a_task_that_is_not_known_is_a_doubt_and_not_an_error() -> None:
    asked, doubts = asked_of(controls(tasks=["arc_challenge", "some_task"], retention=[]))
    assert [one.items for one in asked] == [1172]
    assert doubts == ["task some_task is not known: its time is left out"]
    assert items_of("some_task", controls()) is None


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared real data is not at hand")
def test_real_conversations_are_measured_with_any_tokenizer() -> None:
    found = rows_of(controls(str(REAL / "guanaco-llama2-1k.parquet"), max_length=1024))
    assert found.train + found.validation + found.test <= 1000
    assert found.longest == 1024  # its longest conversation has 11,443 characters
    assert found.mean < found.padded(4) < 1024
