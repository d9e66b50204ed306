"""Values that many tests begin with."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.record import Record, Score, Stage, Step, TensorBytes, Training
from harness.spec import Controls, DataSource, ModelSource, StudySpec
from harness.trial import Trial

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest
    from transformers import PreTrainedTokenizerBase

APP = Path(__file__).resolve().parent.parent / "dashboard" / "app.py"

MakeRecord = Callable[..., Record]
MakeSpec = Callable[..., StudySpec]
Open = Callable[..., "AppTest"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Open:
    """A page of a store, drawn: `address` is what stands in a link to it, keywords what was chosen before."""
    testing = pytest.importorskip("streamlit.testing.v1", reason="the dashboard is an extra")

    def draw(root: Path, page: str = "decide", address: Mapping[str, str] | None = None, **state: object) -> "AppTest":
        monkeypatch.setenv("HARNESS_STORE", str(root))
        app: AppTest = testing.AppTest.from_file(str(APP), default_timeout=60)
        for key, text in (address or {}).items():
            app.query_params[key] = text
        for key, value in state.items():
            app.session_state[key] = value
        app.run()
        return app if page == "decide" else app.switch_page(f"app_pages/{page}.py").run()

    return draw


@pytest.fixture
def make_record() -> MakeRecord:
    """A record of a finished run; `trial` changes fields of its trial, the rest fields of the record."""

    def make(trial: dict[str, Any] | None = None, **changes: Any) -> Record:
        controls = Controls(model=ModelSource(id="tiny"), data=DataSource(path="tiny"))
        fields: dict[str, Any] = {
            "study": "tiny-methods",
            "arm": "lora",
            "phase": "confirm",
            "seed": 101,
            "method": "lora",
            "quantization": "fp32",
            "params": {"learning_rate": 0.002, "rank": 8},
            "controls": controls,
            "model_digest": "m0",
            "data_digest": "d0",
        }
        run = Trial.model_validate(fields | (trial or {}))
        values: dict[str, Any] = {
            "trial": run,
            "trial_id": run.id,
            "question_id": "q0",
            "status": "done",
            "started_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            "seconds": 7.5,
            "train": Training(
                steps=3,
                tokens=300,
                padded_share=0.25,
                tokens_per_second=150.0,
                warmup_steps_excluded=1,
                loop_seconds=1.5,
                final_loss=0.5,
                trainable_parameters=10,
                total_parameters=100,
            ),
            "memory": TensorBytes(weights=400, adapter=40, gradients=40, optimizer=80, step_peak=200),
            "stages": [
                Stage(stage="load", seconds=1.0),
                Stage(stage="adapt", seconds=0.5),
                Stage(stage="train", seconds=3),
            ],
            "steps": [
                Step(step=1, loss=2.0, learning_rate=0.002, grad_norm=1.5, seconds=1.0),
                Step(step=2, loss=1.0, learning_rate=0.001, seconds=2.0),
                Step(step=3, loss=0.5, learning_rate=0.0, grad_norm=0.5, seconds=3.0),
            ],
            "scores": [
                Score(task="recall", metric="exact_match", value=0.75, items=4, role="target", higher_is_better=True)
            ],
            "resolved": {"optim": "adamw_torch", "lora_alpha": 16},
            "environment": {"python": "3.11.7", "gpus": []},
            "data": {"train_rows": 12, "tokens_digest": "t0"},
        }
        return Record.model_validate(values | changes)

    return make


@pytest.fixture
def make_spec() -> MakeSpec:
    """A study of `full` and `lora` with a learning rate each; keywords replace its sections."""

    def make(**sections: Any) -> StudySpec:
        search = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True, "start": [1e-3, 1e-2]}}
        value = {
            "name": "s",
            "controls": {"model": {"id": "tiny"}, "data": {"path": "tiny"}},
            "arms": {
                "full": {"method": "full", "quantization": "fp32", "search": search},
                "lora": {"method": "lora", "quantization": "fp32", "search": search},
            },
            "search": {"trials": 2},
            "confirm": {"seeds": [101, 102]},
        }
        return StudySpec.model_validate(value | sections)

    return make


@pytest.fixture(scope="session")
def tokenizer() -> "PreTrainedTokenizerBase":
    """One token per byte, so that ids decode to the very text: 256 bytes and two special tokens, no chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<|pad|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_ = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_, pad_token="<|pad|>", eos_token="<|end|>")


@pytest.fixture(scope="session")
def model_folder(tokenizer: "PreTrainedTokenizerBase", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with its tokenizer, on disk as a user's own model would be."""
    return a_llama(tmp_path_factory.mktemp("model"), tokenizer)


def a_llama(folder: Path, tokenizer: "PreTrainedTokenizerBase", **changes: Any) -> Path:
    """Write a random Llama; `changes` go to its config.

    Its weights are larger than the usual 0.02: with those nearly all would flow past the layers through the residual,
    and a layer that is cut off would hardly show.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.05,
        "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**{**shape, **changes}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
