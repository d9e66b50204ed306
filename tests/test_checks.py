"""What is missing is named all at once, before anything runs."""

import time
from pathlib import Path

import pytest

from harness import checks, environment
from harness.cli._presets import find_study
from harness.errors import DataError, NotReady, PluginError
from harness.spec import StudySpec, load_study

without_gpu = pytest.mark.skipif(bool(environment.gpus()), reason="a GPU is here")


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that refuses connections, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def study(**controls: object) -> StudySpec:
    arm = {"method": "lora", "quantization": "fp32", "params": {"learning_rate": 1e-3}}
    return StudySpec.model_validate(
        {"name": "x", "controls": {"model": {"id": "tiny"}, "data": {"path": "tiny"}, **controls}, "arms": {"a": arm}}
    )


def levels(found: list[checks.Check]) -> dict[str, str]:
    return {c.what: c.level for c in found}


@without_gpu
@pytest.mark.usefixtures("no_hub")
def test_llama_on_a_laptop_is_refused_with_everything_it_lacks() -> None:
    started = time.monotonic()
    with pytest.raises(NotReady) as caught:
        checks.require(load_study(find_study("llama2-7b-methods")))
    assert time.monotonic() - started < 10
    message = caught.value.message
    assert message.startswith("llama2-7b-methods cannot run here: ")
    assert "no NVIDIA GPU, and one is needed: controls.device is cuda" in message
    assert "model meta-llama/Llama-2-7b-hf is not in the local cache" in message
    assert "dataset timdettmers/openassistant-guanaco is not in the local cache" in message
    # one thing to do for each, and a study that runs here meanwhile
    remedy = caught.value.remedy or ""
    assert len(remedy.splitlines()) == 3
    assert "harness study tiny-methods" in remedy
    assert "hf download meta-llama/Llama-2-7b-hf" in remedy
    assert caught.value.exit_code == 4


def test_the_embedded_study_lacks_nothing_that_an_install_brings(tmp_path: Path) -> None:
    if checks.check_packages(["bitsandbytes"]).level == "fail":
        pytest.skip("the extra `train` is not installed")
    found = checks.check(load_study(find_study("tiny-methods")), tmp_path)
    assert [c.what for c in found if c.level == "fail"] == []


def test_a_data_file_that_is_not_there_is_a_mistake_in_the_study(tmp_path: Path) -> None:
    # exit code 2, to mend the file; not 4, to find another machine
    with pytest.raises(DataError, match=r"no file '.*none.jsonl'"):
        checks.require(study(data={"path": str(tmp_path / "none.jsonl")}))


def test_a_misspelt_method_or_quantization_is_answered_with_the_nearest() -> None:
    spec = study()
    arm = spec.arms["a"]
    with pytest.raises(PluginError, match="did you mean lora"):
        checks.check(spec.model_copy(update={"arms": {"a": arm.model_copy(update={"method": "lorra"})}}))
    with pytest.raises(PluginError, match="did you mean nf4"):
        checks.check(spec.model_copy(update={"arms": {"a": arm.model_copy(update={"quantization": "nf44"})}}))


def test_a_missing_package_is_named_with_the_way_to_install_it() -> None:
    found = checks.check_packages(["a_package_that_is_not_there"])
    assert found.level == "fail"
    assert "a_package_that_is_not_there" in found.what
    assert "pip install" in (found.remedy or "")


@without_gpu
def test_no_gpu_is_fine_where_none_is_needed() -> None:
    assert [c.level for c in checks.check_gpus([])] == ["ok"]
    assert [c.level for c in checks.check_gpus(["hqq runs on CUDA only"])] == ["fail"]


def test_the_disk_is_judged_where_the_results_will_be(tmp_path: Path) -> None:
    assert "disk" in checks.check_disk(tmp_path / "not" / "yet" / "there").what


def test_a_wandb_key_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-key-of-mine")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    found = checks.check_wandb()
    assert "a-key-of-mine" not in found.what
    # the store is the record: without W&B nothing is missing
    assert found.level == "ok"


def test_the_machine_is_checked_without_a_study(tmp_path: Path) -> None:
    found = checks.check_machine(tmp_path, model="tiny")
    assert "Python" in found[0].what
    assert any(c.what.startswith("model tiny: embedded") for c in found)
