"""What a served model leaves: the base, a merged model and an adapter beside its base, at several bit-widths."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig

from harness import worker
from harness.data import IGNORED, Tokens
from harness.evaluate import REFERENCE_ROWS, Distributions, distributions, divergence
from harness.interfaces import Event, Job
from harness.record import Record
from harness.spec import Controls, Served, Speeds
from harness.store import StudyStore
from harness.trial import ServedAs, Timed, Trial

FP32, NF4 = Served(quantization="fp32"), Served(quantization="nf4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def trial(model_folder: Path, folder: Path) -> Trial:
    """A confirmed run of a LoRA that learns enough for a served model without it to be told apart."""
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"say {i} twice", "completion": f" {i} {i}"}) + "\n" for i in range(40))
    )
    controls = Controls.model_validate(
        {
            "model": {"id": str(model_folder)},
            "data": {"path": str(rows), "validation_rows": 4, "test_rows": 6},
            "train": {"max_steps": 10, "batch": 8, "max_length": 64, "schedule": "constant"},
            "device": "cpu",
        }
    )
    return Trial(
        study="s", arm="lora", phase="confirm", seed=101, method="lora", quantization="fp32",
        params={"learning_rate": 1e-2, "rank": 4}, controls=controls, model_digest="m", data_digest="d",
    )  # fmt: skip


DONE: dict[str, Record] = {}
"""By trial and folder: a run that several tests look at is made once."""


def run(trial: Trial, folder: Path) -> Record:
    def quiet(event: Event) -> None: ...

    (folder / "s").mkdir(exist_ok=True)
    return worker.run(Job(trial=trial, question_id="q", folder=folder / "s"), quiet)


def do(trial: Trial, folder: Path) -> Record:
    key = f"{trial.id} {folder}"
    if key not in DONE:
        DONE[key] = run(trial, folder)
    assert DONE[key].status == "done", DONE[key].detail
    return DONE[key]


@pytest.fixture(scope="module")
def confirmed(trial: Trial, folder: Path) -> Record:
    return do(trial, folder)


@pytest.fixture(scope="module")
def zero_shot(trial: Trial, folder: Path) -> Record:
    return do(trial.model_copy(update={"phase": "baseline", "method": "none", "params": {}}), folder)


def served(trial: Trial, way: str, at: Served, **changes: Any) -> Trial:
    of = None if way == "base" else trial.id
    held = ServedAs.model_validate(
        {"name": at.quantization, **at.model_dump(), "way": way, "of": of, "against": FP32.model_dump()}
    )
    return trial.model_copy(update={"phase": "serve", "arm": f"x@{way}", "served": held, **changes})


def scores(record: Record) -> dict[str, float]:
    return {s.task: s.value for s in record.scores}


@pytest.mark.parametrize("way", ["merged", "adapter"])
def test_a_model_served_unquantized_is_the_one_that_was_confirmed(
    trial: Trial, confirmed: Record, zero_shot: Record, folder: Path, way: str
) -> None:
    found = scores(do(served(trial, way, FP32), folder))
    for loss in ("validation_loss", "test_loss"):
        assert found[loss] == pytest.approx(scores(confirmed)[loss], abs=1e-5)
        assert abs(found[loss] - scores(zero_shot)[loss]) > 0.1  # without its adapter it would be the base
    assert found["kl_unquantized"] == pytest.approx(0, abs=1e-6)


def test_a_base_served_unquantized_is_the_base(trial: Trial, zero_shot: Record, folder: Path) -> None:
    record = do(served(trial, "base", FP32, method="none", params={}), folder)
    assert scores(record)["test_loss"] == pytest.approx(scores(zero_shot)["test_loss"], abs=1e-6)
    assert scores(record)["kl_unquantized"] == 0
    assert record.stored_bytes == zero_shot.stored_bytes
    assert [s.stage for s in record.stages] == ["reference", "load", "evaluate"]


@pytest.mark.parametrize("way", ["base", "merged", "adapter"])
def test_four_bits_move_a_model_away_from_itself_and_take_less_room(
    trial: Trial, confirmed: Record, zero_shot: Record, folder: Path, way: str
) -> None:
    record = do(served(trial, way, NF4), folder)
    reference = zero_shot if way == "base" else confirmed
    assert 1e-4 < scores(record)["kl_unquantized"] < 1
    assert abs(scores(record)["test_loss"] - scores(reference)["test_loss"]) < 0.5
    assert record.stored_bytes is not None
    assert reference.stored_bytes is not None
    assert record.disk_bytes is not None
    assert record.disk_bytes <= record.stored_bytes < 0.7 * reference.stored_bytes
    assert record.train is None
    assert record.adapter_path is None
    assert not list((folder / "s").glob(".*.scratch"))


def test_merged_then_quantized_is_not_the_adapter_beside_the_quantized_base(trial: Trial, folder: Path) -> None:
    kept = [scores(do(served(trial, way, NF4), folder))["kl_unquantized"] for way in ("merged", "adapter")]
    assert abs(kept[0] - kept[1]) > 1e-6


def test_every_test_row_has_its_divergence_and_the_score_is_their_mean(trial: Trial, folder: Path) -> None:
    record = do(served(trial, "base", NF4), folder)
    rows = [e for e in record.examples if e.task == "kl_unquantized"]
    losses = [e for e in record.examples if e.task == "test_loss"]
    assert [e.example_id for e in rows] == [e.example_id for e in losses]
    assert scores(record)["kl_unquantized"] == pytest.approx(sum(e.score for e in rows) / len(rows))
    (score,) = [s for s in record.scores if s.task == "kl_unquantized"]
    assert (score.metric, score.role, score.higher_is_better, score.items) == ("kl", "loss", False, len(rows))


def test_a_confirmed_run_on_a_dense_base_says_that_merging_changes_nothing(confirmed: Record) -> None:
    assert scores(confirmed)["kl_merged"] == pytest.approx(0, abs=1e-6)
    assert "kl_requantized" not in scores(confirmed)
    assert confirmed.stages[-1].stage == "reference"


def test_a_confirmed_run_on_four_bits_says_what_quantizing_the_sum_again_would_lose(trial: Trial, folder: Path) -> None:
    record = do(trial.model_copy(update={"quantization": "nf4"}), folder)
    assert scores(record)["kl_merged"] == pytest.approx(0, abs=1e-5)
    assert scores(record)["kl_requantized"] > 1e-4
    assert record.stored_bytes is not None


def test_what_a_killed_attempt_left_is_not_taken_for_the_model(
    trial: Trial, confirmed: Record, folder: Path, model_folder: Path
) -> None:
    served_at_int8 = served(trial, "merged", Served(quantization="int8"))
    left = folder / "s" / f".{served_at_int8.id}.scratch"
    shutil.copytree(model_folder, left)
    (left / "model.safetensors.index.json").write_text("half")
    record = do(served_at_int8, folder)
    assert scores(record)["test_loss"] == pytest.approx(scores(confirmed)["test_loss"], abs=1e-2)
    assert not left.exists()


def test_a_form_that_cannot_be_made_leaves_the_run_as_it_is_and_a_reason(
    trial: Trial, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # on no backend that is installed everywhere does PEFT refuse, or memory run out for the dense model
    def refuse(model: Any) -> Any:
        raise ValueError("cannot merge this layer")

    monkeypatch.setattr("harness.forms.merged_by_peft", refuse)
    record = run(trial.model_copy(update={"quantization": "nf4", "seed": 102}), folder)
    assert record.status == "done"
    assert record.resolved["kl_requantized"] == "not measured: ValueError: cannot merge this layer"
    assert set(scores(record)) == {"validation_loss", "test_loss", "kl_merged"}


def test_an_adapter_that_is_gone_is_named(trial: Trial, folder: Path) -> None:
    record = run(served(trial.model_copy(update={"seed": 999}), "adapter", FP32), folder)
    assert record.status == "failed"
    assert "adapter of the confirmed run is not there" in str(record.detail)
    assert record.goes_on is False


def test_the_records_of_served_models_are_read_back(trial: Trial, folder: Path, confirmed: Record) -> None:
    record = do(served(trial, "merged", NF4), folder)
    store = StudyStore(folder / "s")
    read = {r.trial_id: r for r in store.records()}[record.trial_id]
    assert read == record.model_copy(update={"examples": [], "steps": []})
    row = store.table("trials").set_index("trial_id").loc[record.trial_id]
    columns = [f"served_{name}" for name in ("name", "quantization", "way", "of")]
    assert list(row[columns]) == ["nf4", "nf4", "merged", confirmed.trial_id]


def test_a_trial_of_speed_times_the_base_at_every_bit_width(trial: Trial, folder: Path) -> None:
    speeds = Speeds(batches=[1], contexts=[8], new_tokens=3, repeats=2)
    timed = Timed(at={"full": FP32, "four": NF4}, speeds=speeds)
    changes = {"phase": "speed", "arm": "base@*", "method": "none", "params": {}, "timed": timed}
    record = do(trial.model_copy(update=changes), folder)
    assert {s.served for s in record.speeds} == {"full", "four"}
    assert all(len(s.prefill_seconds) == 2 for s in record.speeds)
    read = {r.trial_id: r for r in StudyStore(folder / "s").records()}[record.trial_id]
    assert read.speeds == record.speeds


# divergence


class Constant(torch.nn.Module):
    """Expects the same distribution everywhere."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(probabilities).log())
        self.config = PretrainedConfig(vocab_size=len(probabilities))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return type("Output", (), {"logits": self.logits.expand(*input_ids.shape, -1)})


ROWS = [Tokens("0", [1, 1, 0], [IGNORED, 1, 0]), Tokens("1", [0, 1], [IGNORED, 1])]


def test_the_divergence_is_that_of_the_textbook_in_nats_per_answer_token() -> None:
    reference: Distributions = distributions(Constant([0.5, 0.5]), ROWS, 2, 0)  # type: ignore[arg-type]
    assert [tuple(p.shape) for p in reference.log_probabilities] == [(2, 2), (1, 2)]  # answer tokens only
    (score,), examples = divergence(Constant([0.25, 0.75]), reference, "kl", 2, 0)  # type: ignore[arg-type]
    # 1/2 ln(1/2 / 1/4) + 1/2 ln(1/2 / 3/4)
    assert score.value == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert [e.score for e in examples] == pytest.approx([score.value] * 2)
    same, _ = divergence(Constant([0.5, 0.5]), reference, "kl", 1, 0)  # type: ignore[arg-type]
    assert same[0].value == 0


def test_no_more_rows_are_compared_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [Tokens(str(i), [0, 1], [IGNORED, 1]) for i in range(100)]

    def count() -> int:
        return len(distributions(Constant([0.5, 0.5]), many, 8, 0).rows)  # type: ignore[arg-type]

    assert count() == REFERENCE_ROWS
    monkeypatch.setattr("harness.evaluate.REFERENCE_BYTES", 3 * 2 * 4)  # three rows of one token and two words
    assert count() == 3
    monkeypatch.setattr("harness.evaluate.REFERENCE_BYTES", 1)
    assert count() == 1
