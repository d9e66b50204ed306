"""Where a model or data comes from, and that its identity is its content."""

import threading
import time
from pathlib import Path

import pytest

from harness import sources
from harness.errors import DataError, NotReady
from harness.sources import bare, find_data, find_model
from harness.spec import DataSource, ModelSource


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache in an empty folder, and a hub that is not asked."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def a_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_the_embedded_model_and_data_are_found() -> None:
    assert find_model(ModelSource(id="tiny")).kind == "embedded"
    assert find_data(DataSource(path="tiny")).kind == "embedded"


def test_a_file_is_known_by_its_content_not_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "c.jsonl").write_text('{"text": "y"}\n')
    a, b, c = (find_data(DataSource(path=str(tmp_path / f"{name}.jsonl"))) for name in "abc")
    assert a.digest == b.digest != c.digest
    assert a.kind == "local"


def test_a_model_is_known_by_its_weights(tmp_path: Path) -> None:
    one, two = a_model(tmp_path / "one"), a_model(tmp_path / "two")
    assert find_model(ModelSource(id=str(one))).digest == find_model(ModelSource(id=str(two))).digest
    (two / "model.safetensors").write_bytes(b"other weights")
    assert find_model(ModelSource(id=str(one))).digest != find_model(ModelSource(id=str(two))).digest


@pytest.mark.parametrize("path", ["none.jsonl", "./none", "/none/at/all", "none"])
def test_data_that_is_neither_a_file_nor_a_hub_id_is_refused(path: str) -> None:
    with pytest.raises(DataError, match="no file"):
        find_data(DataSource(path=path))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
        ("tiny", "tiny"),
        ("/srv/ana/models/secret", "secret"),
        ("~/models/mine", "mine"),
        ("../rows.jsonl", "rows.jsonl"),
        ("ana/rows.jsonl", "rows.jsonl"),  # the suffix makes it a file, the slash alone a hub id
        ("runs/of/ana", "ana"),
        (".", "."),
    ],
)
def test_what_is_passed_on_tells_no_folders(name: str, told: str) -> None:
    assert bare(name) == told


def test_a_folder_or_an_unknown_suffix_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        find_data(DataSource(path=str(tmp_path)))
    (tmp_path / "rows.xlsx").write_text("")
    with pytest.raises(DataError, match=r"\.xlsx is not read; these are: \.jsonl"):
        find_data(DataSource(path=str(tmp_path / "rows.xlsx")))


def test_a_folder_without_safetensors_or_a_tokenizer_is_refused_before_anything_runs(tmp_path: Path) -> None:
    folder = a_model(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="has no tokenizer"):
        find_model(ModelSource(id=str(folder)))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="has no safetensors weights"):
        find_model(ModelSource(id=str(folder)))


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has a config\.json"):
        find_model(ModelSource(id=str(tmp_path)))
    with pytest.raises(DataError, match="no folder"):
        find_model(ModelSource(id=str(tmp_path / "none")))


def test_a_hub_model_that_cannot_be_reached_says_how_to_bring_it_here(cache: Path) -> None:
    with pytest.raises(NotReady, match="owner/name is not in the local cache") as caught:
        find_model(ModelSource(id="owner/name"))
    assert "hf download owner/name" in (caught.value.remedy or "")
    with pytest.raises(NotReady) as caught:
        find_data(DataSource(path="owner/name"))
    assert "--repo-type dataset" in (caught.value.remedy or "")


def test_a_hub_model_in_the_cache_needs_no_network(cache: Path) -> None:
    refs = cache / "models--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc123\n")
    assert find_model(ModelSource(id="owner/name")).digest == "abc123"


def test_a_hub_that_stays_silent_is_not_waited_for() -> None:
    silence = threading.Event()
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 seconds"):
        sources._within(0.05, lambda: str(silence.wait(5)))
    assert time.monotonic() - started < 2
    silence.set()


def test_what_the_hub_says_is_passed_on() -> None:
    assert sources._within(5, lambda: "abc") == "abc"

    def refuse() -> str:
        raise PermissionError("not you")

    with pytest.raises(PermissionError, match="not you"):
        sources._within(5, refuse)


@pytest.mark.network
def test_a_public_model_has_a_commit() -> None:
    assert len(find_model(ModelSource(id="openai-community/gpt2")).digest) == 40
