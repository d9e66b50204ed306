"""The counted step: every tensor of a training step, set against what the libraries hold."""

import importlib.util
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest

from harness.forecast import activations, step
from harness.forecast.architecture import Architecture, Linear
from harness.forecast.configs import from_config
from harness.forecast.setup import Setup
from harness.forecast.tape import Leaf, Meter, Tensor, record, run_backward
from harness.interfaces import AdapterShape
from harness.record import TensorBytes

ROOT = Path(__file__).resolve().parent.parent

HIDDEN, MIDDLE, TOKENS, ROWS = 8, 16, 10, 3


def a_decoder(layers: int = 2, **changes: Any) -> Architecture:
    """Two heads of four, an MLP of sixteen, thirty words."""
    wide = [("q_proj", 8, 8), ("k_proj", 8, 8), ("v_proj", 8, 8), ("o_proj", 8, 8)]
    mlp = [("gate_proj", 8, 16), ("up_proj", 8, 16), ("down_proj", 16, 8)]
    known: dict[str, Any] = {
        "name": "a decoder", "model_type": "llama", "layers": layers, "hidden": 8, "heads": 2, "kv_heads": 2,
        "head_dim": 4, "intermediate": 16, "vocabulary": 30, "tied": True,
        "linears": tuple(Linear(name=name, inputs=i, outputs=o) for name, i, o in wide + mlp),
    }  # fmt: skip
    return Architecture.model_validate({**known, **changes})


def a_setup(**changes: Any) -> Setup:
    known: dict[str, Any] = {
        "architecture": a_decoder(), "full": True, "weight_bits": 32, "compute": "fp32", "micro_batch": ROWS,
        "length": TOKENS, "padded": False, "loss": "chunked",
    }  # fmt: skip
    return Setup.model_validate({**known, **changes})


def lora(**changes: Any) -> Setup:
    return a_setup(**{"full": False, "adapter": AdapterShape(rank=2), **changes})


# by hand


def test_what_full_fine_tuning_keeps_is_what_each_operation_reads_in_backward() -> None:
    kept, t = activations.retained(a_setup()), ROWS * TOKENS * 4  # bytes of a number per token
    # two norms a layer and the last one: one number a row, the normalised input, and the output that a matrix reads
    assert kept["norms"] == 2 * 2 * t * (1 + 8 + 8) + t * (1 + 8)
    assert kept["mlp"] == 2 * t * 4 * 16  # gate, its activation, up, their product
    assert kept["attention"] == 2 * t * (4 * 8 + 2)  # queries, keys, values, result, and a sum per head
    assert kept["residual"] == 2 * 2 * t * 8  # read by the norm that follows
    assert kept["embedding"] == t * 8
    assert kept["positions"] == 2 * 4 * TOKENS * 4  # cosines and sines
    assert "checkpoints" not in kept


def test_frozen_weights_need_no_input_and_adapters_do() -> None:
    full, frozen, t = activations.retained(a_setup()), activations.retained(lora()), ROWS * TOKENS * 4
    # the first norm's input needs no gradient: of it only the output is kept, which the adapters read
    assert frozen["norms"] == t * 8 + 3 * t * (1 + 8) + t
    assert frozen["mlp"] + frozen["adapters"] + frozen["attention"] > full["mlp"]
    only_q = lora(adapter=AdapterShape(rank=2, targets=frozenset({"q_proj"})))
    assert activations.retained(only_q)["mlp"] == 2 * t * 3 * 16  # the product is not read


def test_dropout_keeps_its_mask_and_its_result() -> None:
    def kept(setup: Setup) -> int:
        return sum(activations.retained(setup).values())

    target = frozenset({"down_proj"})
    without, with_ = (lora(adapter=AdapterShape(rank=2, targets=target, dropout=p)) for p in (0.0, 0.1))
    # what it leaves is kept in place of its input; the noise, in fp32, where the input needs a gradient: in the second
    # of two layers, since nothing below the first adapter is trained
    assert kept(with_) - kept(without) == ROWS * TOKENS * 16 * 4


def test_a_padded_batch_keeps_a_mask_for_every_layer() -> None:
    alike, padded = activations.retained(a_setup()), activations.retained(a_setup(padded=True))
    assert padded["attention"] - alike["attention"] == 2 * ROWS * TOKENS**2 * 4
    alone = a_setup(micro_batch=1)
    assert activations.retained(alone) == activations.retained(alone.model_copy(update={"padded": True}))


def test_checkpointing_keeps_the_input_of_every_layer() -> None:
    kept = activations.retained(a_setup(checkpointing=True))
    assert (
        kept["embedding"] + kept["residual"] == 2 * ROWS * TOKENS * 8 * 4 + ROWS * TOKENS * 8 * 4
    )  # and the last norm's
    assert kept["checkpoints"] == 2 * 5056
    assert not {"mlp", "attention"} & kept.keys()


def test_int8_on_a_cpu_keeps_inputs_that_checkpointing_should_have_dropped() -> None:
    # bitsandbytes' MatMul8bitFp sets them as attributes, which no hook sees; 4-bit layers keep none
    int8, nf4 = (
        lora(quantized=True, quantization=q, weight_bits=b, checkpointing=True)
        for q, b in (("int8", 8), ("nf4", 4.127))
    )
    assert activations.retained(int8)["mlp"] == 2 * ROWS * TOKENS * 16 * 4
    assert "mlp" not in activations.retained(nf4)


def test_trls_tile_of_logits_has_its_full_width_whatever_the_vocabulary() -> None:
    # 32768 columns in fp32 for every position but the last of each sequence
    assert activations.logits(a_setup()) > ROWS * (TOKENS - 1) * 32768 * 4
    assert activations.logits(a_setup()) < 1.01 * ROWS * (TOKENS - 1) * 32768 * 4
    many = a_setup(length=5000)
    assert activations.logits(many) < 1.2 * 4096 * 32768 * 4  # never more than 4096 rows


def test_without_a_fused_head_all_logits_their_logarithms_and_two_gradients_are_held() -> None:
    setup = a_setup(architecture=a_decoder(vocabulary=4000), loss="full")
    rows = ROWS * TOKENS
    # log-probabilities, their gradient and that of the logits
    assert activations.logits(setup) == pytest.approx(3 * rows * 4000 * 4, rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("make", [a_setup, lora])
def test_deep_models_are_extrapolated_exactly(make: Any, checkpointing: bool) -> None:
    setup = make(architecture=a_decoder(layers=12), checkpointing=checkpointing)
    counted = step.Step(setup, "cpu", 12).run()
    assert activations.step_peak(setup) == max(counted.peaks.values())
    assert sum(activations.retained(setup).values()) == sum(v for k, v in counted.retained.items() if k != "loss")


def test_the_transient_of_a_layer_holds_the_layer_itself_only_under_checkpointing() -> None:
    kept = sum(activations.retained(a_setup(architecture=a_decoder(layers=9))).values())
    one = kept - sum(activations.retained(a_setup(architecture=a_decoder(layers=8))).values())
    without, with_ = (activations.layer_transient(a_setup(checkpointing=c)) for c in (False, True))
    assert with_ - without == pytest.approx(one, rel=0.3)


def test_stored_bytes_of_quantized_weights_count_codes_scales_and_tables() -> None:
    base = a_setup(quantized=True, full=False, adapter=AdapterShape(rank=2), weight_bits=4.5, quantization="nf4")
    weights = 4 * 8 * 8 + 3 * 8 * 16
    rest = (30 * 8 + 5 * 8) * 4 + 4 * 4  # embedding, five norms, rotary frequencies twice
    blocks = 4 * 1 + 3 * 2  # of 64 weights
    assert activations.weights(base) == 2 * (weights // 2 + blocks * 4 + 7 * 16 * 4) + rest
    nested = base.model_copy(update={"weight_bits": 4.127})
    assert activations.weights(nested) == 2 * (weights // 2 + blocks + 7 * (16 * 4 + 4 + 256 * 4 + 4)) + rest
    int8 = base.model_copy(update={"weight_bits": 8, "quantization": "int8"})
    assert activations.weights(int8) == 2 * (weights + (5 * 8 + 2 * 16) * 4) + rest


def test_adam_holds_two_moments_and_the_number_of_the_step_for_each_tensor() -> None:
    setup = lora()
    numbers = 2 * 2 * (4 * (8 + 8) + 3 * (8 + 16))  # layers, rank
    assert activations.adapter(setup) == activations.gradients(setup) == numbers * 4
    assert activations.optimizer(setup) == 2 * numbers * 4 + 4 * 2 * 7 * 2


# the tape


def test_a_tensor_is_freed_with_its_last_holder() -> None:
    meter = Meter()
    one = meter.tensor(10, 4)
    other = one.kept()
    del one
    assert meter.live == 40
    del other
    assert meter.live == 0
    assert max(meter.peaks.values()) == 40


def test_a_node_lets_go_of_what_it_saved_when_it_has_run() -> None:
    meter = Meter()
    leaf = Leaf()
    start = meter.tensor(10, 4)
    start.node = leaf

    def backward(grad: Tensor) -> list[Tensor]:
        return [grad.like()]

    out = record(start.like(), [start], backward, [start])
    del start
    assert meter.live == 80  # the output, and the input that is saved
    root = out.node
    assert root is not None
    del out
    assert meter.live == 40
    run_backward(root, meter.tensor(10, 4))
    assert meter.live == 40  # what was saved is gone, the leaf has its gradient
    assert max(meter.peaks.values()) == 120  # saved, incoming and outgoing gradient


def test_gradients_that_meet_are_added_in_place_where_nothing_else_holds_them() -> None:
    meter = Meter()
    leaf = Leaf()
    start = meter.tensor(10, 4)
    start.node = leaf
    halves = [record(start.like(), [start], lambda grad: [grad.like()]) for _ in range(2)]
    out = record(start.like(), halves, lambda grad: [grad.like(), grad.like()])
    root = out.node
    assert root is not None
    del start, halves, out
    meter.peaks.clear()
    run_backward(root, meter.tensor(10, 4))
    assert leaf.grad is not None
    assert meter.live == 40
    assert max(meter.peaks.values()) == 120


# against the libraries


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trace_activations", ROOT / "benchmarks" / "trace_activations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bench(script: ModuleType) -> Iterator[ModuleType]:
    with script.one_thread(), script.narrow_tile():
        yield script


ARMS = (
    "full", "full, eager", "full, checkpointed", "full, fp32 under autocast", "lora",
    "lora, rank 16 on q and v, dropout", "lora, checkpointed", "lora, bf16", "int8, checkpointed", "nf4",
)  # fmt: skip
KINDS = ("llama", "llama-gqa", "qwen2", "qwen3", "mistral")
OTHER_ARMS = (
    "full, one length", "full, bf16", "full, bf16 without autocast", "lora, eager", "lora, bf16 without autocast",
    "lora, bf16, checkpointed", "lora, fp32 under autocast", "int8", "nf4, bf16", "nf4, checkpointed",
    "fp4, scales not quantized",
)  # fmt: skip


def compare(bench: ModuleType, folder: Path, kind: str, arm: str, layers: int, batch: int, length: int) -> None:
    setup, counted, peak = bench.measured(kind, bench.CASES[arm], layers, batch, length, folder)
    forecast = activations.retained(setup)
    forecast.pop("checkpoints", None)  # states of the generator, which tracing cannot see
    assert forecast == {part: size for part, size in counted.items() if size}
    # oneDNN's scratch in bf16 is not counted: tens of kilobytes of the megabyte that such a model takes
    assert activations.step_peak(setup) == pytest.approx(peak, rel=0.03 if "bf16, checkpointed" in arm else 0.002)


@pytest.mark.parametrize(("kind", "arm"), [*(("llama-gqa", a) for a in ARMS), *((k, "lora") for k in KINDS)])
def test_every_part_and_the_peak_are_what_the_libraries_hold(
    bench: ModuleType, tmp_path: Path, kind: str, arm: str
) -> None:
    compare(bench, tmp_path, kind, arm, 3, 3, 40)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "arm"), list(itertools.product(KINDS, ARMS + OTHER_ARMS)))
@pytest.mark.parametrize(("layers", "batch", "length"), [(2, 4, 40), (3, 1, 200), (6, 3, 64)])
def test_the_same_at_other_sizes(
    bench: ModuleType, tmp_path: Path, kind: str, arm: str, layers: int, batch: int, length: int
) -> None:
    compare(bench, tmp_path, kind, arm, layers, batch, length)


def test_dora_is_counted_to_the_percent(bench: ModuleType, tmp_path: Path) -> None:
    setup, counted, peak = bench.measured("llama", bench.CASES["dora"], 3, 3, 40, tmp_path)
    assert sum(activations.retained(setup).values()) == pytest.approx(counted.total(), rel=0.001)
    assert activations.step_peak(setup) == pytest.approx(peak, rel=0.01)


@pytest.mark.parametrize(("stored", "compute"), [("float32", "fp32"), ("float32", "bf16"), ("bfloat16", "bf16")])
@pytest.mark.parametrize("vocabulary", [72, 4000])
def test_the_models_own_loss_is_counted_to_the_byte(
    bench: ModuleType, stored: str, compute: Literal["fp32", "bf16"], vocabulary: int
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from harness.accounting import step_peak

    config = bench.a_config("llama-gqa", 2)
    config.vocab_size = vocabulary
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, stored)).train()
    inputs = bench.a_batch(3, 40, padded=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=compute == "bf16"):
            loss = model(**inputs, use_cache=False).loss
        loss.backward()

    step()
    model.zero_grad(set_to_none=True)
    setup = a_setup(
        architecture=from_config(config.to_dict(), "a Llama"), weight_bits=32 if stored == "float32" else 16,
        compute=compute, micro_batch=3, length=40, padded=True, loss="full",
    )  # fmt: skip
    assert activations.step_peak(setup) == pytest.approx(step_peak(step, torch.device("cpu")), abs=200)


@pytest.mark.parametrize(
    ("method", "quantization", "params", "training"),
    [
        ("full", "fp32", {}, {}),
        ("full", "bf16", {}, {"compute_dtype": "bf16"}),
        ("lora", "fp32", {"rank": 4}, {}),
        ("lora", "int8", {"rank": 4}, {}),
        ("lora", "nf4", {"rank": 4}, {}),
        ("lora", "fp4", {"rank": 4, "double_quant": False}, {}),
        ("lora", "torchao8", {"rank": 4}, {}),
        ("lora", "torchao8", {"rank": 4}, {"compute_dtype": "bf16", "gradient_checkpointing": True}),
        ("lora", "hqq4", {"rank": 4}, {}),
        ("lora", "hqq2", {"rank": 4, "group_size": 32}, {"compute_dtype": "bf16", "gradient_checkpointing": True}),
        ("lora", "nf4", {"rank": 4, "dropout": 0.1}, {"compute_dtype": "bf16", "gradient_checkpointing": True}),
        ("lora", "fp32", {"rank": 4, "rslora": True}, {"adapter_dtype": "bf16", "micro_batch": 2}),
        ("lora", "fp32", {"rank": 4, "dora": True}, {"gradient_checkpointing": True}),
    ],
)
def test_a_run_of_the_embedded_model_measures_what_was_forecast(
    tmp_path: Path, method: str, quantization: str, params: dict[str, Any], training: dict[str, Any]
) -> None:
    measured, forecast = a_run(tmp_path, method, quantization, params, training)
    assert forecast.model_copy(update={"step_peak": None}) == measured.model_copy(update={"step_peak": None})
    assert forecast.step_peak == pytest.approx(measured.step_peak, rel=0.002)


def a_run(
    folder: Path, method: str, quantization: str, params: dict[str, Any], training: dict[str, Any]
) -> tuple[TensorBytes, TensorBytes]:
    """One step of the embedded model through the harness, and its forecast."""
    from harness import accounting, plugins
    from harness.data import Tokens
    from harness.forecast import catalogue
    from harness.spec import Training
    from harness.train import DTYPES, train
    from harness.worker import load_tokenizer

    settings = Training(batch=4, max_steps=1, **training)
    location = str(ROOT / "harness" / "tiny" / "model")
    stored, trained = plugins.quantization(quantization), plugins.method(method)
    method_params, quantization_params = plugins.split_params(method, quantization, params)
    model = stored.load(
        location, quantization_params, revision=None, compute=DTYPES[settings.compute_dtype], device="cpu",
        remote_code=False,
    )  # fmt: skip
    base = accounting.stored_bytes(model)
    lengths = (32, 31, 30, 20)
    rows = [Tokens(example_id=str(n), ids=[5] * n, labels=[5] * n) for n in lengths]
    found = train(
        trained.prepare(model, method_params, settings), load_tokenizer(location, None, False), rows, settings,
        learning_rate=1e-3, seed=0, base_bytes=base, scratch=str(folder), on_step=lambda step, of: None,
    )  # fmt: skip
    setup = Setup(
        architecture=catalogue.find("tiny"),
        full=method == "full",
        adapter=trained.adapter(method_params),
        weight_bits=stored.bits_stored(quantization_params, settings.compute_dtype),
        quantized=bool(stored.packages),
        quantization=quantization,
        compute=settings.compute_dtype,
        adapter_dtype=settings.adapter_dtype,
        micro_batch=settings.micro_batch or settings.batch,
        length=32,
        checkpointing=settings.gradient_checkpointing,
        loss="chunked",
    )
    return found.memory, activations.tensors(setup)
