"""`harness import peft`: published results become a study that can be read and says why nothing of it is judged."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeSpec

from harness.cli import harness, run
from harness.cli._forecast import records_of
from harness.cli._import import add
from harness.errors import StoreError
from harness.importers.peft import Peft
from harness.interfaces import Imported
from harness.record import Record
from harness.store import Store
from harness.summary import gather, settled, summarise

EXAMPLE = Path(__file__).parent / "conformance" / "imports" / "peft" / "lora--small-1.5B-rank32.json"
REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "peft_method_comparison" / "metamathqa_results"
REASON = "PEFT's results have one seed per arm and no outcomes per question"

Ask = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a result of PEFT into a folder: the example with some of its keys changed (`run_info.total_time=3`)."""
    example = json.loads(EXAMPLE.read_text())
    folder = tmp_path / "theirs"
    folder.mkdir()

    def make(name: str = "lora/small-1.5B-rank32", file: str = "", **changes: Any) -> Path:
        result = copy.deepcopy(example)
        for dotted, value in {"run_info__experiment_name": name, **changes}.items():
            *parents, last = dotted.split("__")
            place = result
            for parent in parents:
                place = place[parent]
            place[last] = value
        (folder / (file or f"{name.replace('/', '--')}.json")).write_text(json.dumps(result))
        return folder

    return make


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ask:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            run(harness, [*arguments, "--store", str(tmp_path / "store")])
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return call


def only(found: Imported) -> Record:
    (record,) = found.records
    return record


def refusal(folder: Path) -> StoreError:
    with pytest.raises(StoreError) as caught:
        Peft().read(folder)
    return caught.value


# what becomes of a result


def test_a_result_is_one_confirmed_run_of_an_arm_of_its_own(write: Write) -> None:
    found = Peft().read(write())
    record, arm = only(found), found.spec.arms["lora-rank32"]
    assert (record.trial.arm, record.phase, record.trial.seed, record.status) == ("lora-rank32", "confirm", 0, "done")
    assert (arm.method, arm.quantization) == ("lora", "bf16")
    assert arm.params == {
        "learning_rate": 1e-4, "rank": 32, "targets": "q_proj,v_proj", "alpha": 64, "init_lora_weights": True,
    }  # fmt: skip
    assert record.score("gsm8k/accuracy") == 0.48
    assert record.score("wiki_forgetting") == 0.05
    assert record.started_at.isoformat() == "2026-07-15T05:41:18+00:00"
    assert record.seconds == 200.0


def test_its_time_is_that_of_the_steps_and_its_rate_leaves_nothing_out(write: Write) -> None:
    # twice 250 steps in 25 s each; PEFT's own train_time of 150 s has the test's answers in it
    record = only(Peft().read(write()))
    train, (stage,) = record.train, record.stages
    assert train is not None
    assert (train.steps, train.tokens, train.loop_seconds, train.tokens_per_second) == (500, 100_000, 50.0, 2000.0)
    assert (stage.stage, stage.seconds, stage.reserved_peak_bytes) == ("train", 50.0, 20 << 30)
    assert [(s.step, s.loss, s.seconds) for s in record.steps] == [(250, 1.0, 25.0), (500, 0.9, 50.0)]


def test_what_is_not_known_stays_unknown(write: Write) -> None:
    record = only(Peft().read(write()))
    assert record.train is not None
    assert record.train.padded_share is None
    assert [s.learning_rate for s in record.steps] == [None, None]
    # the file's size is that of the adapter's checkpoint; ours is that of the whole model
    assert record.disk_bytes is None
    assert record.resolved["file_size"] == 4096
    assert record.examples == []


def test_everything_else_is_kept_under_its_own_name(write: Write) -> None:
    record = only(Peft().read(write()))
    assert record.resolved["train_config"]["query_template"] == "Question: {query}\nAnswer:"
    assert record.resolved["peft_config"]["lora_dropout"] == 0.0
    assert record.environment["gpus"] == [{"name": "NVIDIA L40S"}]
    assert record.environment["packages"] == {"transformers": "5.13.1", "peft": "0.19.2.dev0", "torch": "2.13.0+cu130"}
    assert record.environment["commits"] == {"peft": "d787f51b"}


def test_the_controls_are_what_all_were_trained_with(write: Write) -> None:
    controls = Peft().read(write()).spec.controls
    assert (controls.model.id, controls.model.revision) == ("some-org/small-1.5B", "aaaa")
    assert (controls.data.path, controls.data.revision) == ("meta-math/MetaMathQA", "bbbb")
    train = controls.train
    assert (train.max_steps, train.batch, train.max_length, train.schedule) == (500, 4, 768, "cosine")
    assert (train.weight_decay, train.compute_dtype) == (0.1, "bf16")


def test_an_arm_that_was_trained_otherwise_says_so(write: Write) -> None:
    write()
    write("lora/small-1.5B-own", run_info__train_config__optimizer_kwargs={"lr": 1e-3})
    found = Peft().read(write("lora/small-1.5B-clip", run_info__train_config__grad_norm_clip=0.5))
    arms = found.spec.arms
    # without a weight decay of its own, torch's 0.01 was in force
    assert arms["lora-own"].params["weight_decay"] == 0.01
    assert arms["lora-clip"].params["max_grad_norm"] == 0.5
    assert "weight_decay" not in arms["lora-rank32"].params
    assert found.spec.controls.train.max_grad_norm == 1.0


def test_the_rank_of_adalora_is_the_one_that_it_begins_with(write: Write) -> None:
    config = {"peft_type": "ADALORA", "r": 8, "init_r": 64, "target_r": 32}
    (arm,) = Peft().read(write(run_info__peft_config=config)).spec.arms.values()
    assert (arm.method, arm.params["rank"], arm.params["target_r"]) == ("adalora", 64, 32)


@pytest.mark.parametrize(
    ("experiment", "name"),
    [
        ("lora/small-1.5B-rank32", "lora-rank32"),
        ("full-finetuning/small-1.5B-lr_0.00001", "full-finetuning-lr-1e-5"),
        ("ia3/small-1.5B-all-attn-5k-lr0.005", "ia3-all-attn-5k-lr-5e-3"),
        ("adaptionprompt/small-1.5B-lr_5e-3", "adaptionprompt-lr-5e-3"),
        ("hira/Small-1.5b-rank32-lr4.5e-3", "hira-rank32-lr-45e-4"),
        ("frod/small-1.5B-sparse0.02-lr_0.2", "frod-sparse2e-2-lr-2e-1"),
        ("peanut/small-1.5B-rank1-depth0-s32.0", "peanut-rank1-depth0-s32"),
        ("tokens/small-1.5B-sos+eos", "tokens-sos-eos"),
        ("boft/small-1.5B", "boft"),
    ],
)
def test_arms_are_named_without_the_model_and_without_points(write: Write, experiment: str, name: str) -> None:
    assert list(Peft().read(write(experiment, file="a.json")).spec.arms) == [name]


# runs that went wrong


@pytest.mark.parametrize(
    ("message", "status", "detail"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore", "out_of_memory", "CUDA out of memory."),
        ("manually canceled", "failed", "manually canceled"),
        ("", "failed", "PEFT says: canceled"),
    ],
)
def test_what_peft_calls_canceled_is_told_apart(write: Write, message: str, status: str, detail: str) -> None:
    folder = write(train_info__status="canceled", run_info__error_msg=message)
    record = only(Peft().read(folder))
    assert record.status == status
    assert record.detail is not None
    assert record.detail.startswith(detail)
    assert record.scores == []


def test_a_run_out_of_memory_is_an_end_and_is_not_tried_again(write: Write, tmp_path: Path) -> None:
    # our own runs go on at half the micro-batch then, and do not count as ended
    write("full-finetuning/small-1.5B-a", run_info__peft_config=None)
    folder = write(train_info__status="canceled", run_info__error_msg="CUDA out of memory.", train_info__metrics=[])
    found = Peft().read(folder)
    summary = summarise(Store(tmp_path).study(add(Store(tmp_path), found).spec.name))
    lora = next(row for row in summary.arms if row.arm == "lora-rank32")
    assert next(r for r in found.records if r.trial.arm == "lora-rank32").stages == []  # no time is not 0 s
    assert (lora.failed, lora.score, lora.statuses) == (1, None, {"out_of_memory": 1})
    assert "lora-rank32: 1 run out of memory" in summary.caveats


def test_forgetting_is_left_out_where_it_was_computed_wrongly(write: Write) -> None:
    write("lora/small-1.5B-old", run_info__created_at="2026-07-13T23:59:59+00:00")
    found = Peft().read(write("lora/small-1.5B-new", run_info__created_at="2026-07-14T00:00:00+00:00"))
    scores = {r.trial.arm: r.score("wiki_forgetting") for r in found.records}
    assert scores == {"lora-old": None, "lora-new": 0.05}
    assert found.notes == ["1 of 2 made before 2026-07-14 are without wiki_forgetting: it was wrong then"]


# folders that hold something else


def test_results_of_two_models_are_refused(write: Write) -> None:
    write()
    error = refusal(write("lora/other-rank32", run_info__train_config__model_id="some-org/other"))
    assert "holds results of 2 models: some-org/other (1), some-org/small-1.5B (1)" in error.message
    assert error.remedy is not None
    assert "--name" in error.remedy


def test_several_commits_and_versions_are_said(write: Write) -> None:
    write()
    info = {"metamath": {"sha": "bbbb"}, "gsm8k": {"sha": "dddd"}}
    packages = {"peft-version": "0.20.1"}
    found = Peft().read(write("lora/small-1.5B-b", meta_info__dataset_info=info, meta_info__package_info=packages))
    assert found.notes == [
        "several versions of peft: 0.20.1 (1), 0.19.2.dev0 (1)",
        "several commits of the test data: dddd (1), cccc (1)",
    ]


def test_of_several_commits_of_the_model_none_is_claimed_for_all(write: Write) -> None:
    write()
    found = Peft().read(write("lora/small-1.5B-b", meta_info__model_info={"sha": "eeee"}))
    assert found.spec.controls.model.revision is None
    assert {r.trial.arm: r.trial.model_digest for r in found.records} == {"lora-rank32": "aaaa", "lora-b": "eeee"}


def test_a_commit_that_could_not_be_asked_for_does_not_count_as_another(write: Write) -> None:
    write()
    found = Peft().read(write("lora/small-1.5B-b", meta_info__model_info={"sha": None}))
    assert len(found.records) == 2
    assert found.spec.controls.model.revision == "aaaa"


def test_results_of_2025_are_read_under_the_names_of_then(write: Write) -> None:
    record = only(
        Peft().read(
            write(
                train_info={
                    "cuda_memory_max": 7, "num_trainable_params": 1, "num_total_params": 2, "status": "success",
                    "metrics": [
                        {"step": 500, "train loss": 0.6, "train time": 5.0, "tokens / sec": 2.0},
                        {"step": 500, "test accuracy": 0.48, "train loss": 0.6},
                    ],
                },
                meta_info__system_info={"system": "Linux", "gpu": "NVIDIA L40S"},
            )
        )
    )  # fmt: skip
    assert record.stages[0].reserved_peak_bytes == 7
    assert record.train is not None
    assert record.train.tokens == 10  # 5 s at 2 tokens/s, where the total is not given
    assert record.environment["gpus"] == [{"name": "NVIDIA L40S"}]


def test_of_two_results_of_one_experiment_the_newer_one_counts(write: Write) -> None:
    metrics = [{"step": 500, "test accuracy": 0.9, "train loss": 1.0}]
    write(file="new.json", run_info__created_at="2026-08-01T00:00:00+00:00", train_info__metrics=metrics)
    found = Peft().read(write(file="old.json"))
    assert only(found).score("gsm8k/accuracy") == 0.9
    assert found.skipped == {"old.json": "is an older result of the arm that new.json is of"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run_info__train_config__dtype": "int4"}, "is of the dtype int4"),
        ({"train_info__metrics": []}, "is a success without a test accuracy"),
        ({"run_info__train_config__batch_size": 0}, "batch_size"),
        ({"meta_info__dataset_info": {"dreambooth": {"sha": "e"}}}, "meta_info.dataset_info.metamath: field required"),
    ],
)
def test_a_result_of_another_form_is_named_with_the_reason(write: Write, changes: dict[str, Any], reason: str) -> None:
    write()
    found = Peft().read(write("lora/odd", file="odd.json", **changes))
    assert len(found.records) == 1
    assert reason in found.skipped["odd.json"]


# in the store


def test_an_import_writes_nothing_while_another_command_has_the_study(write: Write, tmp_path: Path) -> None:
    store = Store(tmp_path)
    study = store.study(add(store, Peft().read(write())).spec.name)
    before = (study.folder / "study.yaml").read_text()
    newer = Peft().read(write(run_info__created_at="2027-01-01T00:00:00+00:00", train_info__total_time=3))
    with study.alone(), pytest.raises(StoreError, match="another command"):
        add(store, newer)
    assert (len(study.records()), (study.folder / "study.yaml").read_text()) == (1, before)
    assert len(add(store, newer).new) == 1


def test_a_newer_result_of_a_known_run_is_its_next_attempt(write: Write, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    add(store, Peft().read(write()))
    newer = Peft().read(write(run_info__created_at="2026-09-01T00:00:00+00:00", run_info__total_time=7.0))
    (written,) = add(store, newer).new
    (kept,) = store.study("peft-metamathqa").records()
    assert (written.attempt, kept.attempt, kept.seconds) == (2, 2, 7.0)
    older = Peft().read(write())
    assert add(store, older).new == []


def test_an_arm_that_has_changed_is_refused(write: Write, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    add(store, Peft().read(write()))
    other = Peft().read(write(run_info__train_config__optimizer_kwargs={"lr": 5e-4, "weight_decay": 0.1}))
    with pytest.raises(StoreError, match="an arm lora-rank32 with other settings") as caught:
        add(store, other)
    assert caught.value.remedy == "keep them apart: --name peft-metamathqa-2"


def test_another_model_under_the_same_name_is_refused_and_can_have_its_own(write: Write, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    add(store, Peft().read(write()))
    other = Peft().read(write(run_info__train_config__model_id="some-org/other"))
    with pytest.raises(StoreError, match=r"controls\.model\.id was 'some-org/small-1.5B'") as caught:
        add(store, other)
    assert "--name peft-metamathqa-2" in str(caught.value.remedy)
    add(store, other, "peft-metamathqa-2")
    (record,) = store.study("peft-metamathqa-2").records()
    assert record.trial.study == "peft-metamathqa-2"
    assert store.studies() == ["peft-metamathqa", "peft-metamathqa-2"]


def test_nothing_was_declared_so_nothing_is_exploratory(write: Write, tmp_path: Path) -> None:
    study = Store(tmp_path).study(add(Store(tmp_path), Peft().read(write())).spec.name)
    assert study.declared() is None
    assert gather(study).changed == []


def test_imported_runs_sharpen_no_forecast(write: Write, tmp_path: Path, make_spec: MakeSpec) -> None:
    spec = add(Store(tmp_path), Peft().read(write())).spec
    mine = make_spec(controls={"model": spec.controls.model, "data": {"path": "tiny"}})
    assert records_of(mine, tmp_path) == []


# what can be said of it


def test_nothing_is_judged_and_the_reason_is_said_once(write: Write, tmp_path: Path) -> None:
    write("full-finetuning/small-1.5B-a", run_info__peft_config=None)
    for i in range(6):
        folder = write(f"lora/small-1.5B-rank{i}")
    study = Store(tmp_path).study(add(Store(tmp_path), Peft().read(folder)).spec.name)
    summary = summarise(study)
    assert summary.sentence == (
        f"On gsm8k/accuracy over 1319 items and 1 seed, nothing can be said of 6 arms: {REASON}."
    )
    assert summary.comparison is not None
    assert {(v.label, v.interval, v.reason) for v in summary.comparison.verdicts} == {("not enough data", None, REASON)}
    assert summary.loss is None
    assert not settled(gather(study))


def test_a_few_arms_are_named(write: Write, tmp_path: Path) -> None:
    write("full-finetuning/small-1.5B-a", run_info__peft_config=None)
    write("ia3/small-1.5B-a")
    folder = write("lora/small-1.5B-a")
    sentence = summarise(Store(tmp_path).study(add(Store(tmp_path), Peft().read(folder)).spec.name)).sentence
    assert f"nothing can be said of ia3-a and lora-a: {REASON}" in sentence


def test_a_second_seed_changes_the_reason(write: Write, tmp_path: Path) -> None:
    write(file="0.json")
    found = Peft().read(write(file="1.json", run_info__train_config__seed=1))
    assert (found.spec.confirm.seeds, found.spec.search.seed) == ([0, 1], 2)
    study = Store(tmp_path).study(add(Store(tmp_path), found).spec.name)
    assert gather(study).refusal == "PEFT's results have no outcomes per question"


# the command


def test_the_command_says_what_it_did(ask: Ask, write: Write) -> None:
    write()
    folder = str(write("ia3/small-1.5B-a", train_info__status="canceled", run_info__error_msg="CUDA out of memory."))
    (Path(folder) / "stray.json").write_text("{}")
    code, out, err = ask("import", "peft", folder)
    assert code == 0
    assert "2 results of PEFT: 1 seed each, gsm8k n=1319, NVIDIA L40S, 1 out of memory; 1 skipped" in out
    assert "study peft-metamathqa: 2 new, 0 there already" in out
    assert "skipped: stray.json is not a result of PEFT's comparison" in err
    again = json.loads(ask("import", "peft", folder, "--json")[1])
    assert (again["study"], again["results"], again["new"]) == ("peft-metamathqa", 2, 0)
    assert again["origin"]["tool"] == "PEFT"


def test_mistakes_are_answered_in_words(ask: Ask, write: Write) -> None:
    folder = str(write())
    for arguments, said in [
        (("import", "pefd", folder), "did you mean peft?"),
        (("import", "peft", f"{folder}-not"), "does not exist"),
        (("import", "peft", folder, "--name", "a/b"), "'a/b' cannot name a study"),
    ]:
        code, _, err = ask(*arguments)
        assert (code, said in err) == (2, True), err
        assert "Traceback" not in err


def test_commands_that_read_name_the_origin_and_the_reason(ask: Ask, write: Write) -> None:
    write("full-finetuning/small-1.5B-a", run_info__peft_config=None)
    ask("import", "peft", str(write()))
    listing = ask("show")
    assert "note: peft-metamathqa holds results of PEFT, made elsewhere" in listing[1]
    assert json.loads(ask("show", "--json")[1])[0]["origin"] == "PEFT"
    shown = ask("show", "peft-metamathqa")
    assert (shown[0], REASON in shown[1]) == (0, True)
    assert "note: results of PEFT, made elsewhere (https://github.com/huggingface/peft" in shown[1]
    assert "tuning ledger" not in shown[1]
    code, out, _ = ask("compare", "lora-rank32", "full-finetuning-a")
    assert (code, f"not enough data: {REASON}" in out) == (5, True)
    assert "lora-rank32 0.480   full-finetuning-a 0.480" in out
    assert "tuned with" not in out
    code, out, _ = ask("recommend")
    assert (code, REASON in out) == (5, True)
    code, out, _ = ask("next")
    assert (code, out) == (0, f"nothing to run here: {REASON}\n")


@pytest.mark.parametrize("command", ["study", "plan", "doctor"])
def test_commands_that_would_run_it_refuse(ask: Ask, write: Write, tmp_path: Path, command: str) -> None:
    ask("import", "peft", str(write()))
    code, _, err = ask(command, str(tmp_path / "store" / "peft-metamathqa" / "study.yaml"))
    assert code == 2
    assert "holds results of PEFT, which were made elsewhere: it can be read, not run or planned" in err


def test_what_was_imported_is_sent_only_when_it_is_named(ask: Ask, write: Write) -> None:
    pytest.importorskip("wandb")
    ask("import", "peft", str(write()))
    assert json.loads(ask("sync", "--dry-run", "--json")[1])["studies"] == {}
    named = json.loads(ask("sync", "peft-metamathqa", "--dry-run", "--json")[1])["studies"]
    assert len(named["peft-metamathqa"]["unwritten"]) == 1


# the published results


@pytest.mark.skipif(not REAL.is_dir(), reason="the published results are not at hand")
def test_all_published_results_are_read() -> None:
    found = Peft().read(REAL)
    assert (len(found.records), found.skipped) == (63, {})
    assert {r.status for r in found.records} == {"done"}
    assert {"lora-rank32", "full-finetuning-lr-1e-5", "ia3-all-attn-5k-lr-5e-3"} <= set(found.spec.arms)
    assert found.spec.baseline == "full-finetuning-lr-1e-5"
    by_arm = {r.trial.arm: r for r in found.records}
    # 631 of 1319 questions, as in the published file
    assert by_arm["lora-rank32"].score("gsm8k/accuracy") == pytest.approx(631 / 1319)
    assert by_arm["full-finetuning-lr-1e-5"].trial.params == {"learning_rate": 1e-5, "weight_decay": 0.01}
    # all are from after the day that the loss on Wikipedia was mended
    assert all(sum(s.role == "loss" for s in r.scores) == 1 for r in found.records)
