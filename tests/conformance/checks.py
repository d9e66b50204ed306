"""The promises of a method and of a quantization, as functions that raise AssertionError.

Plugins of other packages can call them too: each takes plugins and the folder of a small model whose layers matter
(see `a_llama` in tests/conftest.py) and returns nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed

from harness import accounting, dense
from harness.data import IGNORED, Tokens
from harness.generate import _tuned
from harness.interfaces import Method, Quantization
from harness.quantization.fp32 import plugin as fp32
from harness.spec import Dtype, Training, Value
from harness.train import DTYPES, Trained, train

SEED = 3
LEARNING_RATE = 3e-3
LEAST_COSINE = 0.9
"""Of the gradient to that on a float32 base. On the small random model the noise of nf4 leaves 0.98, that of fp4 0.94;
gradients cut at the layers leave 0.47."""
LEAST_COSINE_BELOW_4_BITS = {3: 0.8, 2: 0.5, 1: 0.0}
"""The noise of hqq at 3 bits leaves 0.88, at 2 bits 0.67, at 1 bit 0.15: there only the next limit says anything."""
LEAST_COSINE_TO_ITS_OWN_WEIGHTS = 0.9999
"""Of the gradient to that on a dense base of the dequantized weights: only rounding is between them, at any bits."""
LEAST_EFFECT_KL = 1e-2
"""What the adapter of a check must at least be worth, so that one that is lost is missed."""
EXACT_KL = 1e-6
"""Nats per token between two models that multiply with the same weights in float32."""


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
    before = {name: plain(p).clone() for name, p in model.named_parameters() if not p.requires_grad}
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
    assert all(torch.equal(before[name], plain(p)) for name, p in frozen.items())


def check_gradients_are_those_of_a_dense_base_after_an_evaluation(
    method: Method, quantization: Quantization, folder: Path, least: float | None = None
) -> dict[str, float]:
    """The gradient points where it does on a float32 base, and on a dense base of the same weights exactly so.

    After an evaluation too: some backends repack their weights for inference then, and gradients end at the layer from
    there on without an error; the loss still falls, to a worse value. Returns both cosines.
    """
    ids = some_ids()
    if least is None:
        least = LEAST_COSINE_BELOW_4_BITS.get(int(quantization.bits), LEAST_COSINE)
    model = prepared(method, quantization, folder, shaken=True)
    model.eval()
    with torch.inference_mode():
        model(input_ids=ids.to(model.device))
    model.train()
    found = gradients(model, ids)
    cosines = {}
    for base, stored, wanted in (
        ("a float32 base", fp32, least),
        ("a dense base of its own weights", Densified(quantization), LEAST_COSINE_TO_ITS_OWN_WEIGHTS),
    ):
        other = gradients(prepared(method, stored, folder, shaken=True), ids)
        cosines[base] = cosine(found, other)
        assert cosines[base] >= wanted, (
            f"cosine {cosines[base]:.3f} to the gradient on {base}, at least {wanted} is wanted"
        )
    return cosines


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


def check_bits_stored(
    quantization: Quantization, folder: Path, within: float = 0.01, compute: Dtype = "fp32"
) -> dict[str, float]:
    """What the linear layers take is what `bits_stored` says, before and after use.

    The model's layers have to be wide: scales by the row and tables by the layer are not in `bits_stored`. Returns both
    counts of bits per weight.
    """
    weights = {name: m.weight.numel() for name, m in load(fp32, folder).named_modules() if is_linear(m)}
    model = load(quantization, folder, compute)
    layers = {name: m for name, m in model.named_modules() if name in weights and name != "lm_head"}
    assert layers
    said = quantization.bits_stored(quantization.params(), compute)
    counted = 0.0
    for when in ("loaded", "used"):
        stored = sum(accounting.stored_bytes(m) for m in layers.values())
        counted = 8 * stored / sum(weights[name] for name in layers)
        off = counted / said - 1
        assert abs(off) <= within, f"{counted:.3f} bits per weight when {when}, {said:.3f} by bits_stored: {off:+.1%}"
        logits(model, some_ids())
    return {"said": said, "counted": counted}


def check_loading_gives_the_same_base_each_time(quantization: Quantization, folder: Path) -> None:
    """A base is quantized again whenever it is loaded; an adapter that was trained on it needs the same one."""
    found = []
    for seed in range(2):  # as two processes would have; what is drawn at random must not be the same by chance
        torch.manual_seed(seed)
        found.append(logits(load(quantization, folder), some_ids()))
    assert torch.equal(*found), "two loads answer differently"


def check_the_exact_merge_answers_as_the_adapter_beside_the_base(
    method: Method, quantization: Quantization, folder: Path, kept: Path, tolerance: float = EXACT_KL
) -> float:
    """`harness.dense.merge` changes no answer, and neither does saving and loading what it gives. Returns the KL.

    A backend that quantizes the inputs of its layers too is compared by its weights.
    """
    ids = some_ids()
    base = logits(load(Densified(quantization), folder), ids)
    expected = logits(prepared(method, Densified(quantization), folder, shaken=True), ids)
    assert kl(expected, base) > LEAST_EFFECT_KL, "the adapter does too little to be missed"
    merged = dense.merge(prepared(method, quantization, folder, shaken=True))
    assert not has_adapter(merged)
    found = logits(merged, ids)
    apart = kl(expected, found)
    assert apart <= tolerance, f"merged exactly, KL {apart:.2g} to the adapter beside the base"
    merged.save_pretrained(kept)
    again = AutoModelForCausalLM.from_pretrained(kept, dtype=merged.dtype)
    assert torch.equal(logits(again, ids), found), "the merged model answers otherwise after loading"
    return apart


def check_peft_merges_as_it_is_said(
    method: Method, quantization: Quantization, folder: Path, exact: float = EXACT_KL
) -> float | None:
    """What PEFT's own merge does to an adapter on this base is what `about.merges` says.

    Returns the KL between the adapter beside the base and PEFT's merge; None where it refuses.
    """
    ids = some_ids()
    model = prepared(method, quantization, folder, shaken=True)
    beside = logits(model, ids)
    try:
        merged = logits(model.merge_and_unload(), ids)  # type: ignore[operator]  # PEFT's model
    except (ValueError, NotImplementedError, AttributeError) as refused:
        if quantization.about.merges != "refuses":
            raise AssertionError(f"PEFT refuses to merge, not {quantization.about.merges}: {refused}") from refused
        return None
    lost, all_of_it = kl(beside, merged), kl(beside, logits(load(quantization, folder), ids))
    assert all_of_it > LEAST_EFFECT_KL, "the adapter does too little to be missed"
    dropped = kl(merged, logits(load(quantization, folder), ids)) <= exact
    found = "drops" if dropped else "exact" if lost <= exact else "requantizes"
    said = quantization.about.merges
    assert found == said, (
        f"PEFT's merge {found}, not {said}: KL {lost:.2g} to the adapter, which is worth {all_of_it:.2g}"
    )
    return lost


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
    torch.manual_seed(SEED + 1)  # loading draws nothing that matters, or else it shows
    untrained = logits(load(quantization, folder), ids)
    assert not torch.allclose(expected, untrained, atol=1e-3) or not has_adapter(model)
    model.save_pretrained(kept)
    found = logits(_tuned(load(quantization, folder), kept, model.device), ids)
    largest = float((found - expected).abs().max() / expected.abs().max())
    assert largest <= tolerance, f"logits differ by {largest:.2g} of the largest after loading"


# what the checks stand on


class Densified:
    """A quantization's weights, dequantized."""

    def __init__(self, inner: Quantization) -> None:
        self.inner = inner
        self.about, self.params, self.packages = inner.about, inner.params, inner.packages
        self.bits, self.needs = inner.bits, inner.needs

    def load(self, folder: str, params: Value, **options: Any) -> PreTrainedModel:
        return dense.densify(self.inner.load(folder, params, **options))

    def bits_stored(self, params: Value, compute: Dtype = "bf16") -> float:
        return 32.0


def load(quantization: Quantization, folder: Path, compute: Dtype = "fp32") -> PreTrainedModel:
    """The base in float32 but for what is quantized; on the CPU unless the quantization needs a GPU."""
    return quantization.load(
        str(folder),
        quantization.params(),
        revision=None,
        compute=DTYPES[compute],
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


def plain(weight: Tensor) -> Tensor:
    """A weight's values as an ordinary tensor, for those that a library's own class holds (torchao)."""
    dequantize = getattr(weight, "dequantize", None)
    held: Tensor = dequantize() if hasattr(weight, "__tensor_flatten__") and dequantize else weight
    return held.detach()


def kl(expected: Tensor, found: Tensor) -> float:
    """Nats per token that the found logits are from the expected ones."""
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def cosine(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Between two gradients of the same weights."""
    assert set(one) == set(other), "other weights are trained than on a dense base"
    flat = (torch.cat([g[name].flatten() for name in sorted(one)]) for g in (one, other))
    return float(torch.nn.functional.cosine_similarity(*flat, dim=0))


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
