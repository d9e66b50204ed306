"""The promises of a method and of a quantization, as functions that raise AssertionError.

Plugins of other packages can call them too: each takes plugins and the folder of a small model whose layers matter
(see `a_llama` in tests/conftest.py) and returns nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, set_seed

from harness import accounting
from harness.data import IGNORED, Tokens
from harness.generate import _tuned
from harness.interfaces import Method, Quantization
from harness.quantization.fp32 import plugin as fp32
from harness.spec import Dtype, Training
from harness.train import DTYPES, Trained, train

SEED = 3
LEARNING_RATE = 3e-3
LEAST_COSINE = 0.9
"""On the small random model the noise of nf4 leaves 0.98, that of fp4 0.94; gradients cut at the layers leave 0.47."""


def check_output_is_unchanged_before_training(
    method: Method, quantization: Quantization, folder: Path, tolerance: float = 1e-6
) -> None:
    """An adapter that was only added must not be seen in the output."""
    ids = some_ids()
    expected = logits(load(quantization, folder), ids)
    found = logits(prepared(method, quantization, folder), ids)
    largest = float((found - expected).abs().max() / expected.abs().max())
    assert largest <= tolerance, f"adding the adapter changed the logits by {largest:.2g} of the largest"


def check_gradients_reach_what_is_trained_and_only_that(
    method: Method, quantization: Quantization, folder: Path
) -> None:
    """Every weight marked trainable gets a gradient, no other does, and an adapter leaves the base frozen."""
    model = prepared(method, quantization, folder, shaken=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    loss_of(model, some_ids()).backward()  # type: ignore[no-untyped-call]  # torch does not type it
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trainable, "nothing is trained"
    none = [name for name, p in trainable.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not none, f"no gradient reaches {none[0]} and {len(none) - 1} others of {len(trainable)}"
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    leaking = [name for name, p in frozen.items() if p.grad is not None]
    assert not leaking, f"the frozen {leaking[0]} has a gradient"
    if has_adapter(model):
        assert set(trainable) == set(added(model, quantization, folder)), "an adapter trains itself and nothing else"
    assert all(torch.equal(before[name], p) for name, p in frozen.items())


def check_gradients_are_those_of_a_dense_base_after_an_evaluation(
    method: Method, quantization: Quantization, folder: Path, least: float = LEAST_COSINE
) -> None:
    """The gradient points where it does on a float32 base, after an evaluation too.

    Some backends repack their weights for inference then, and gradients end at the layer from there on without an
    error: the loss still falls, to a worse value.
    """
    ids = some_ids()
    dense = gradients(prepared(method, fp32, folder, shaken=True), ids)
    model = prepared(method, quantization, folder, shaken=True)
    model.eval()
    with torch.inference_mode():
        model(input_ids=ids.to(model.device))
    model.train()
    found = gradients(model, ids)
    assert set(found) == set(dense), "other weights are trained than on a dense base"
    one, other = (torch.cat([g[name].flatten() for name in sorted(dense)]) for g in (found, dense))
    cosine = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    assert cosine >= least, f"cosine {cosine:.3f} to the gradient on a float32 base, at least {least} is wanted"


def check_adapter_has_the_dtype_of_the_controls(
    method: Method, quantization: Quantization, folder: Path, dtype: Dtype
) -> None:
    """As it is added and as it is trained, whatever the base is stored in."""
    settings = Training(max_steps=1, batch=2, adapter_dtype=dtype)
    model = prepared(method, quantization, folder, settings=settings)
    adapter = added(model, quantization, folder)
    wanted = {DTYPES[dtype]}
    assert {p.dtype for p in adapter.values()} == wanted, f"added in {dtypes(adapter)}, not {dtype}"
    trained = trained_on(model, folder, settings)
    adapter = added(model, quantization, folder)
    assert {p.dtype for p in adapter.values()} == wanted, f"trained in {dtypes(adapter)}, not {dtype}"
    assert trained.resolved["trainable_dtypes"] == [str(DTYPES[dtype]).removeprefix("torch.")]
    assert trained.resolved["optimizer_state_dtypes"] == trained.resolved["trainable_dtypes"]


def check_adapter_begins_the_same_on_every_base(method: Method, quantization: Quantization, folder: Path) -> None:
    """One seed is one adapter, up to what PEFT rounds when it adds one to a 16-bit base."""
    dense = prepared(method, fp32, folder)
    begins = {name: p.detach().float() for name, p in added(dense, fp32, folder).items()}
    for name, p in added(prepared(method, quantization, folder), quantization, folder).items():
        same = torch.allclose(p.detach().float().cpu(), begins[name], rtol=2**-8, atol=1e-6)
        assert same, f"{name} begins otherwise than on a float32 base"


def check_bits_stored(quantization: Quantization, folder: Path, within: float = 0.01) -> None:
    """What the linear layers take is what `bits_stored` says, before and after use.

    The model's layers have to be wide: scales by the row and tables by the layer are not in `bits_stored`.
    """
    dense = {name: m.weight.numel() for name, m in load(fp32, folder).named_modules() if is_linear(m)}
    model = load(quantization, folder)
    layers = {name: m for name, m in model.named_modules() if name in dense and name != "lm_head"}
    assert layers
    expected = sum(dense[name] for name in layers) * quantization.bits_stored(quantization.params()) / 8
    for when in ("loaded", "used"):
        stored = sum(accounting.stored_bytes(m) for m in layers.values())
        off = stored / expected - 1
        assert abs(off) <= within, f"{stored} bytes when {when}, {expected:.0f} by bits_stored: {off:+.1%}"
        logits(model, some_ids())


def check_training_lowers_the_loss(method: Method, quantization: Quantization, folder: Path) -> None:
    """A few steps on a few rows: the last loss is clearly below the first."""
    settings = Training(max_steps=12, batch=4, schedule="constant", warmup_ratio=0)
    trained = trained_on(prepared(method, quantization, folder, settings=settings), folder, settings)
    first, last = trained.steps[0].loss, trained.steps[-1].loss
    assert last < 0.9 * first, f"the loss went from {first:.3f} to {last:.3f} in {len(trained.steps)} steps"


def check_what_was_saved_answers_the_same(
    method: Method, quantization: Quantization, folder: Path, kept: Path, tolerance: float = 1e-5
) -> None:
    """The logits after saving, and loading on a fresh base, are those from before."""
    ids = some_ids()
    model = prepared(method, quantization, folder, shaken=True)
    expected = logits(model, ids)
    untrained = logits(load(quantization, folder), ids)
    assert not torch.allclose(expected, untrained, atol=1e-3) or not has_adapter(model)
    model.save_pretrained(kept)
    found = logits(_tuned(load(quantization, folder), kept, model.device), ids)
    largest = float((found - expected).abs().max() / expected.abs().max())
    assert largest <= tolerance, f"logits differ by {largest:.2g} of the largest after loading"


# what the checks stand on


def load(quantization: Quantization, folder: Path) -> PreTrainedModel:
    """The base in float32 but for what is quantized; on the CPU unless the quantization needs a GPU."""
    return quantization.load(
        str(folder),
        quantization.params(),
        revision=None,
        compute=torch.float32,
        device="cuda" if quantization.needs == "cuda" else "cpu",
        remote_code=False,
    )


def prepared(
    method: Method,
    quantization: Quantization,
    folder: Path,
    *,
    settings: Training | None = None,
    shaken: bool = False,
) -> PreTrainedModel:
    """A model as a trial has it before training; `shaken` gives an added adapter weights as if it had been trained."""
    model = load(quantization, folder)
    set_seed(SEED)
    model = method.prepare(model, method.params(), settings or Training())
    if shaken:
        shake(added(model, quantization, folder))
    return model.train()


def shake(weights: dict[str, torch.nn.Parameter]) -> None:
    """Add the same noise to the same weights, whatever their dtype."""
    draw = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for _, p in sorted(weights.items()):
            p.copy_(p.float() + 0.05 * torch.randn(p.shape, generator=draw).to(p.device))


def added(model: PreTrainedModel, quantization: Quantization, folder: Path) -> dict[str, torch.nn.Parameter]:
    """The weights that the method put beside the base's, by name; empty when it trains the base's own."""
    if not has_adapter(model):
        return {}
    base = sum(1 for _ in load(quantization, folder).named_parameters())
    # PEFT moves a base weight to `...base_layer.weight` and leaves what it does not wrap
    own = {n: p for n, p in model.named_parameters() if any(part in n for part in _adapter_parts(model))}
    assert len(own) == sum(1 for _ in model.named_parameters()) - base
    return own


def _adapter_parts(model: PreTrainedModel) -> list[str]:
    """How PEFT names the weights of its adapters: `.<adapter>.` or `.<adapter>` at the end."""
    return [f".{name}" for name in model.peft_config]


def has_adapter(model: PreTrainedModel) -> bool:
    return hasattr(model, "peft_config")


def is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)


def some_ids() -> Tensor:
    return torch.randint(2, 258, (2, 24), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    model.eval()
    found: Tensor = model(input_ids=ids.to(model.device)).logits.float().cpu()
    return found


def loss_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    ids = ids.to(model.device)
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def gradients(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    loss_of(model, ids).backward()  # type: ignore[no-untyped-call]  # torch does not type it
    return {n: p.grad.float().cpu() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def trained_on(model: PreTrainedModel, folder: Path, settings: Training) -> Trained:
    """The model after the training stage of a trial, on a few rows."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as scratch:
        return train(
            model,
            AutoTokenizer.from_pretrained(folder),
            some_rows(),
            settings,
            learning_rate=LEARNING_RATE,
            seed=SEED,
            base_bytes=0,
            scratch=scratch,
            on_step=lambda step, of: None,
        )


def some_rows() -> Sequence[Tokens]:
    """Four rows of a prompt that is not trained on and an answer that is."""
    texts = [[2 + (7 * row + 3 * i) % 200 for i in range(16)] for row in range(4)]
    return [Tokens(f"r{i}", ids, [IGNORED] * 6 + ids[6:]) for i, ids in enumerate(texts)]


def dtypes(weights: dict[str, Any]) -> str:
    return ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in weights.values()}))
