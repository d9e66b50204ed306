"""Arms without room, from their first attempt to the table: real runs in processes of their own, and real forecasts."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeRecord, MakeSpec
from test_study import MadeUp, Silent

from harness import plugins
from harness.cli._table import render
from harness.forecast import processors
from harness.interfaces import Launcher
from harness.pairs import differences
from harness.planning import Forecaster
from harness.record import Record, outcomes
from harness.spec import Controls, DataSource, ModelSource, StudySpec
from harness.store import Store
from harness.study import run_study
from harness.summary import Summary, summarise
from harness.trial import Trial

NARROW = '''
import torch
from harness.methods.lora import plugin as lora

class Narrow:
    """LoRA on a device that has room for two sequences at a time."""

    trains_quantized_base, trains, params = lora.trains_quantized_base, lora.trains, lora.params
    adapter = staticmethod(lora.adapter)

    def prepare(self, model, params, training):
        model = lora.prepare(model, params, training)
        model.register_forward_pre_hook(self.limit, with_kwargs=True)
        return model

    @staticmethod
    def limit(module, args, kwargs):
        if module.training and kwargs["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

plugin = Narrow()
'''


@pytest.fixture
def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The method `narrow`, offered by a package of its own, in this process and in those of trials."""
    place = tmp_path / "site"
    about = place / "narrow_methods-1.dist-info"
    about.mkdir(parents=True)
    (place / "narrow_methods.py").write_text(NARROW)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: narrow-methods\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[harness.methods]\nnarrow = narrow_methods:plugin\n")
    monkeypatch.syspath_prepend(str(place))
    plugins._foreign.cache_clear()
    yield
    plugins._foreign.cache_clear()


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    one = plugins.launcher("local", workers=1)
    yield one
    one.stop()


@pytest.fixture
def spec(make_spec: MakeSpec, model_folder: Path, tmp_path: Path) -> StudySpec:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": f" {i}"}) + "\n" for i in range(24)))
    arm: dict[str, Any] = {"quantization": "fp32", "params": {"learning_rate": 1e-4}}
    return make_spec(
        controls={
            "model": {"id": str(model_folder)},
            "data": {"path": str(rows), "validation_rows": 2, "test_rows": 3},
            "train": {"max_steps": 2, "batch": 8, "max_length": 64},
            "device": "cpu",
        },
        arms={"lora": {"method": "lora", **arm}, "narrow": {"method": "narrow", **arm}},
        search={"trials": 1},
        confirm={"seeds": [101]},
    )


def rungs(records: Sequence[Record], arm: str) -> list[tuple[str, int, str]]:
    return [(r.phase, r.trial.training.per_pass, r.status) for r in records if r.trial.arm == arm]


def row(summary: Summary, arm: str) -> dict[str, Any]:
    return vars(next(r for r in summary.arms if r.arm == arm))


def test_a_trial_at_the_studys_own_micro_batch_has_the_id_it_always_had() -> None:
    # or a study begun before there were other micro-batches would run everything again
    controls = Controls(model=ModelSource(id="tiny"), data=DataSource(path="tiny"))
    trial = Trial(
        study="s", arm="lora", phase="confirm", seed=101, method="lora", quantization="fp32",
        params={"learning_rate": 0.002, "rank": 8}, controls=controls, model_digest="m0", data_digest="d0",
    )  # fmt: skip
    assert trial.id == trial.configuration == "a8c8163f6156"
    assert trial.at(4).id not in {trial.id, trial.at(2).id}
    assert trial.at(4).configuration == trial.id
    assert (trial.training.per_pass, trial.at(4).training.per_pass, trial.at(4).training.batch) == (16, 4, 16)


@pytest.mark.usefixtures("narrow")
def test_an_arm_out_of_memory_goes_on_at_half_the_micro_batch_until_it_fits(
    spec: StudySpec, launcher: Launcher, tmp_path: Path
) -> None:
    outcome = run_study(spec, Store(tmp_path), launcher, Silent())
    assert outcome.failed == []
    assert rungs(outcome.records, "narrow") == [
        ("search", 8, "out_of_memory"),
        ("search", 4, "out_of_memory"),
        ("search", 2, "done"),
        ("confirm", 2, "done"),
    ]
    assert rungs(outcome.records, "lora") == [("search", 8, "done"), ("confirm", 8, "done")]
    # both arms are the same method: what was halved does not show in the losses
    losses = {(r.trial.arm, r.phase): r.score("validation_loss") for r in outcome.records if r.status == "done"}
    for phase in ("search", "confirm"):
        assert losses["narrow", phase] == pytest.approx(losses["lora", phase], rel=1e-5)
    store = Store(tmp_path).study("s")
    summary = summarise(store)
    assert summary.comparison is not None
    (verdict,) = summary.comparison.verdicts
    assert verdict.reason is None or "tuning budgets" not in verdict.reason
    narrow = row(summary, "narrow")
    assert narrow["statuses"] == {"out_of_memory": 2, "done": 2}
    assert (narrow["search_trials"], narrow["failed"]) == (1, 0)
    assert (narrow["micro_batch"], row(summary, "lora")["micro_batch"]) == ("2", "8")
    (differing,) = [
        v for k, v in differences(spec, {r.arm: r for r in summary.arms}, "lora", "narrow").items() if k != "method"
    ]
    assert differing == ["8", "2"]
    shown = render(summary)
    assert "2 out of memory, 2 done" in " ".join(shown.split())
    assert "narrow: run at micro_batch 2 since 8 was out of memory; the effective batch is the same" in shown
    again = run_study(spec, Store(tmp_path), launcher, Silent())
    assert again.ran == 0


LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "max_position_embeddings": 4096, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip


def test_a_7b_on_a_card_of_24_gb_runs_as_far_as_it_is_forecast_to_fit(make_spec: MakeSpec, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA_2_7B))
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")  # nothing is loaded
    rows = tmp_path / "rows.jsonl"
    text = "word " * 600
    rows.write_text("".join(json.dumps({"prompt": f"{i} {text}", "completion": text}) + "\n" for i in range(500)))
    rate = {"learning_rate": 1e-4}
    spec = make_spec(
        controls={
            "model": {"id": str(model)},
            "data": {"path": str(rows)},
            "train": {"batch": 16, "max_length": 1024, "compute_dtype": "bf16"},
            "evaluate": {"batch": 4},
        },
        arms={
            "full": {"method": "full", "quantization": "bf16", "params": rate},
            "lora": {"method": "lora", "quantization": "bf16", "params": rate},
            "qlora": {"method": "lora", "quantization": "nf4", "params": rate},
        },
        search={"trials": 1},
        confirm={"seeds": [101]},
    )
    forecaster = Forecaster(spec, processors.find("RTX 4090"))
    outcome = run_study(spec, Store(tmp_path), MadeUp(), Silent(), forecaster=forecaster)
    # weights, gradients and optimizer state of full fine-tuning alone are more than twice the card
    assert rungs(outcome.records, "full") == [("search", n, "does_not_fit") for n in (16, 8, 4, 2, 1)]
    used = {}
    for arm in ("lora", "qlora"):
        *refused, search, confirm = rungs(outcome.records, arm)
        assert refused == [("search", n, "does_not_fit") for n in (16, 8, 4, 2, 1) if n > search[1]]
        used[arm] = search[1]
        assert (search, confirm) == (("search", used[arm], "done"), ("confirm", used[arm], "done"))
    assert 1 <= used["lora"] < used["qlora"] < 16
    kept = Store(tmp_path).study("s").records()
    assert all(r.forecast is not None and r.forecast.process_bytes is not None for r in kept)
    assert all((r.forecast.fits == "no") == (r.status == "does_not_fit") for r in kept if r.forecast)


@pytest.mark.parametrize(
    ("tries", "end"),
    [
        ([(None, "out_of_memory")], None),  # it goes on
        ([(None, "out_of_memory"), (8, "done")], (8, "done")),
        ([(None, "does_not_fit"), (8, "does_not_fit"), (4, "diverged")], (4, "diverged")),
        ([(1, "out_of_memory")], (1, "out_of_memory")),
        ([(1, "does_not_fit"), (None, "done")], (None, "done")),  # run anyway
        ([(None, "timed_out"), (8, "diverged")], (8, "diverged")),
        ([(8, "done"), (4, "failed")], (8, "done")),
        ([(None, "killed"), (1, "does_not_fit")], (None, "killed")),
    ],
)
def test_how_a_configuration_ended(
    make_record: MakeRecord, tries: list[tuple[int | None, str]], end: tuple[int, str] | None
) -> None:
    records = [make_record(trial={"micro_batch": n}, status=status) for n, status in tries]
    found = [(r.trial.micro_batch, r.status) for r in outcomes(records)]
    assert found == ([] if end is None else [end])


def test_a_smaller_micro_batch_does_not_help_where_memory_ran_out_outside_training(make_record: MakeRecord) -> None:
    def out_of_memory(stage: str) -> Record:
        return make_record(
            status="out_of_memory", stages=[{"stage": "load", "seconds": 1}, {"stage": stage, "seconds": 1}]
        )

    assert out_of_memory("train").goes_on
    assert not out_of_memory("evaluate").goes_on
