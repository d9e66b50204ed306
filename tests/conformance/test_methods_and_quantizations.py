"""Every method on every quantization keeps the promises of harness/interfaces.py; nobody lists them here."""

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from checks import (
    EXACT_KL,
    LEAST_COSINE,
    check_adapter_begins_the_same_on_every_base,
    check_adapter_has_the_dtype_of_the_controls,
    check_bits_stored,
    check_gradients_are_those_of_a_dense_base_after_an_evaluation,
    check_gradients_reach_what_is_trained_and_only_that,
    check_loading_gives_the_same_base_each_time,
    check_output_is_unchanged_before_training,
    check_peft_merges_as_it_is_said,
    check_the_exact_merge_answers_as_the_adapter_beside_the_base,
    check_training_lowers_the_loss,
    check_what_was_saved_answers_the_same,
)
from conftest import a_llama
from torch import nn

from harness import dense, plugins
from harness.interfaces import Method, Quantization
from harness.quantization.fp32 import plugin as fp32
from harness.spec import Dtype, Training, Value
from harness.train import Diverged

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LORA, FULL = plugins.method("lora"), plugins.method("full")
METHODS = [name for name in plugins.names("methods") if name != "none"]  # which trains nothing
ADAPTERS = [name for name in METHODS if plugins.method(name).trains_quantized_base]
QUANTIZATIONS = plugins.names("quantization")
ROUGH = {"bf16": 2e-2, "fp16": 4e-3}
"""How far logits may be off where a base computes in 16 bits: the adapter's zeros are added in another order."""
ROUGH_KL = {"bf16": 1e-3, "fp16": 1e-5}
"""How far a merge may be off where the sum is rounded to 16 bits, in nats per token."""
WITHIN = {"gptq2": 0.015}
"""How far the bytes of 1024 x 1024 matrices may be off: an index of 32 bits per input is 1.4 % of 2-bit codes there."""


def runs_here(name: str) -> str | None:
    """Why a quantization cannot run on this machine."""
    quantization = plugins.quantization(name)
    missing = [p for p in quantization.packages if importlib.util.find_spec(p) is None]
    if missing:
        return f"{name} needs {missing[0]}"
    return f"{name} needs a GPU" if quantization.needs == "cuda" and not torch.cuda.is_available() else None


def quantization_named(name: str) -> Quantization:
    why = runs_here(name)
    if why:
        pytest.skip(why)
    return plugins.quantization(name)


def pairs(methods: list[str]) -> list[Any]:
    """Every method on every base that it can train."""
    return [
        pytest.param(m, q, id=f"{m}-{q}")
        for m in methods
        for q in QUANTIZATIONS
        if plugins.method(m).trains_quantized_base or plugins.quantization(q).bits >= 16
    ]


@pytest.fixture(scope="session")
def wide_folder(tokenizer: "PreTrainedTokenizerBase", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of 1024 x 1024 matrices: a scale for each row of them is 0.4 % of their 8-bit codes."""
    folder = tmp_path_factory.mktemp("wide")
    return a_llama(folder, tokenizer, hidden_size=1024, intermediate_size=1024, num_hidden_layers=1)


@pytest.mark.parametrize(("method", "quantization"), pairs(METHODS))
def test_an_adapter_that_was_only_added_changes_nothing(method: str, quantization: str, model_folder: Path) -> None:
    check_output_is_unchanged_before_training(
        plugins.method(method), quantization_named(quantization), model_folder, ROUGH.get(quantization, 1e-6)
    )


@pytest.mark.parametrize(("method", "quantization"), pairs(METHODS))
def test_gradients_reach_what_is_trained_and_only_that(method: str, quantization: str, model_folder: Path) -> None:
    check_gradients_reach_what_is_trained_and_only_that(
        plugins.method(method), quantization_named(quantization), model_folder
    )


@pytest.mark.parametrize(("method", "quantization"), pairs(METHODS))
def test_gradients_are_not_cut_by_an_evaluation(
    method: str, quantization: str, model_folder: Path, record_property: Any
) -> None:
    found = check_gradients_are_those_of_a_dense_base_after_an_evaluation(
        plugins.method(method), quantization_named(quantization), model_folder
    )
    record_property("cosine", found)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "quantization"), pairs(ADAPTERS))
def test_an_adapter_has_the_dtype_of_the_controls_on_every_base(
    method: str, quantization: str, dtype: Dtype, model_folder: Path
) -> None:
    check_adapter_has_the_dtype_of_the_controls(
        plugins.method(method), quantization_named(quantization), model_folder, dtype
    )


@pytest.mark.parametrize(("method", "quantization"), pairs(ADAPTERS))
def test_one_seed_is_one_adapter_on_every_base(method: str, quantization: str, model_folder: Path) -> None:
    check_adapter_begins_the_same_on_every_base(plugins.method(method), quantization_named(quantization), model_folder)


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_base_takes_the_bits_that_its_quantization_says(
    quantization: str, compute: Dtype, wide_folder: Path, record_property: Any
) -> None:
    found = check_bits_stored(quantization_named(quantization), wide_folder, WITHIN.get(quantization, 0.01), compute)
    record_property("bits", found)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_base_is_the_same_each_time_that_it_is_loaded(quantization: str, model_folder: Path) -> None:
    check_loading_gives_the_same_base_each_time(quantization_named(quantization), model_folder)


@pytest.mark.parametrize(("method", "quantization"), pairs(ADAPTERS))
def test_a_merge_answers_as_the_adapter_beside_the_base(
    method: str, quantization: str, model_folder: Path, tmp_path: Path, record_property: Any
) -> None:
    found = check_the_exact_merge_answers_as_the_adapter_beside_the_base(
        plugins.method(method),
        quantization_named(quantization),
        model_folder,
        tmp_path,
        ROUGH_KL.get(quantization, EXACT_KL),
    )
    record_property("kl", found)


@pytest.mark.parametrize(("method", "quantization"), pairs(ADAPTERS))
def test_the_merge_of_peft_does_what_is_said_of_it(
    method: str, quantization: str, model_folder: Path, record_property: Any
) -> None:
    found = check_peft_merges_as_it_is_said(
        plugins.method(method),
        quantization_named(quantization),
        model_folder,
        ROUGH_KL.get(quantization, EXACT_KL),
    )
    record_property("kl", found)


@pytest.mark.parametrize(("method", "quantization"), pairs(METHODS))
def test_training_lowers_the_loss(method: str, quantization: str, model_folder: Path) -> None:
    if (method, quantization) == ("full", "fp16"):
        pytest.skip("AdamW's epsilon is zero in fp16: the next test")
    check_training_lowers_the_loss(plugins.method(method), quantization_named(quantization), model_folder)


def test_training_fp16_weights_themselves_is_said_to_diverge(model_folder: Path) -> None:
    with pytest.raises(Diverged, match="loss is nan at step 2"):
        check_training_lowers_the_loss(FULL, plugins.quantization("fp16"), model_folder)


@pytest.mark.parametrize(("method", "quantization"), pairs(METHODS))
def test_what_was_saved_answers_the_same(method: str, quantization: str, model_folder: Path, tmp_path: Path) -> None:
    check_what_was_saved_answers_the_same(
        plugins.method(method), quantization_named(quantization), model_folder, tmp_path
    )


# Backends and methods with a fault each: a check that lets one pass checks nothing.


class Faulty:
    """The float32 base, with something done to it after it is loaded."""

    about = fp32.about
    params = fp32.params
    bits = 32.0
    needs = fp32.needs
    packages: tuple[str, ...] = ()

    def load(self, folder: str, params: Value, **options: Any) -> "PreTrainedModel":
        model = fp32.load(folder, params, **options)
        for module in list(model.modules()):
            for name, layer in list(module.named_children()):
                if isinstance(layer, nn.Linear) and name != "lm_head":
                    self.spoil(layer)
        return model

    def spoil(self, layer: nn.Linear) -> None: ...

    def bits_stored(self, params: Value, compute: Dtype = "bf16") -> float:
        return 32.0


class CutsGradients(Faulty):
    """Layers without a gradient to their input, as backends have whose kernels are for inference."""

    def spoil(self, layer: nn.Linear) -> None:
        layer.register_forward_hook(lambda module, inputs, output: output.detach())


class CutsGradientsAfterEvaluation(Faulty):
    """The same, but only once an evaluation has repacked the weights."""

    def spoil(self, layer: nn.Linear) -> None:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            module.repacked = getattr(module, "repacked", False) or not module.training  # type: ignore[assignment]
            return output.detach() if module.repacked else output

        layer.register_forward_hook(hook)


class CutsGradientsAtOneBit(Faulty):
    """Where the noise of the weights alone turns the gradient nearly anywhere."""

    bits = 1.0

    def load(self, folder: str, params: Value, **options: Any) -> "PreTrainedModel":
        hqq1 = plugins.quantization("hqq1")
        model = hqq1.load(folder, hqq1.params(), **options)
        for layer in [m for m in model.modules() if dense.is_quantized(m)]:
            layer.register_forward_hook(lambda module, inputs, output: output.detach())
        return model


class DropsAdapters(Faulty):
    """Hands out copies of its weights, so that what is added to them when an adapter is merged is lost."""

    def spoil(self, layer: nn.Linear) -> None:
        layer.__class__ = HandsOutCopies


class HandsOutCopies(nn.Linear):
    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return nn.Parameter(self._parameters["weight"].detach().clone(), requires_grad=False)


class LoadsRandomWeights(Faulty):
    """What transformers makes of an HQQ model that it saved itself: layers as they are initialised, and no error."""

    def spoil(self, layer: nn.Linear) -> None:
        with torch.no_grad():
            layer.reset_parameters()


class ForgetsItsScales(Faulty):
    def bits_stored(self, params: Value, compute: Dtype = "bf16") -> float:
        return 31.5


class KeepsACopy(Faulty):
    """Holds the weights a second time once it is used, as a cache of dequantized weights would."""

    def spoil(self, layer: nn.Linear) -> None:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            module.cache = layer.weight.detach().clone()

        layer.register_forward_hook(hook)


class Lora:
    """LoRA with something done to it."""

    inner = plugins.method("lora")
    params = inner.params
    trains_quantized_base = True

    def prepare(self, model: "PreTrainedModel", params: Value, training: Training) -> "PreTrainedModel":
        model = self.inner.prepare(model, params, training)
        for name, p in model.named_parameters():
            self.spoil(name, p)
        return model

    def spoil(self, name: str, p: nn.Parameter) -> None: ...


class StartsSomewhere(Lora):
    def spoil(self, name: str, p: nn.Parameter) -> None:
        if "lora_B" in name:
            nn.init.normal_(p, std=0.02)


class TrainsTheNorms(Lora):
    def spoil(self, name: str, p: nn.Parameter) -> None:
        p.requires_grad_(p.requires_grad or "norm" in name)


class FreezesHalf(Lora):
    def spoil(self, name: str, p: nn.Parameter) -> None:
        if "lora_A" in name:
            p.requires_grad_(False)


class ForgetsTheDtype(Lora):
    def spoil(self, name: str, p: nn.Parameter) -> None:
        if "lora_" in name:
            p.data = p.data.to(torch.float16)


class TrainsNothing(Lora):
    def spoil(self, name: str, p: nn.Parameter) -> None:
        p.requires_grad_("lora_A" in name and "layers.0.self_attn.q_proj" in name)


@pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
def test_a_backend_that_cuts_gradients_is_caught(method: Method, model_folder: Path) -> None:
    with pytest.raises(AssertionError, match=r"cosine 0\.|no gradient reaches|other weights"):
        check_gradients_are_those_of_a_dense_base_after_an_evaluation(method, CutsGradients(), model_folder)


def test_a_backend_that_cuts_gradients_after_an_evaluation_is_caught(model_folder: Path) -> None:
    check_gradients_reach_what_is_trained_and_only_that(LORA, CutsGradientsAfterEvaluation(), model_folder)
    with pytest.raises(AssertionError, match=r"cosine 0\.") as caught:
        check_gradients_are_those_of_a_dense_base_after_an_evaluation(
            LORA, CutsGradientsAfterEvaluation(), model_folder
        )
    # the limit lies well between the fault and the noise of 4-bit weights
    assert float(str(caught.value).split()[1]) < LEAST_COSINE - 0.1


def test_a_backend_that_cuts_gradients_is_caught_where_weights_are_all_noise(model_folder: Path) -> None:
    if why := runs_here("hqq1"):
        pytest.skip(why)
    with pytest.raises(AssertionError, match=r"a dense base of its own weights|no gradient reaches|other weights"):
        check_gradients_are_those_of_a_dense_base_after_an_evaluation(LORA, CutsGradientsAtOneBit(), model_folder)


def test_a_backend_that_drops_the_adapter_when_it_is_merged_is_caught(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="PEFT's merge drops, not exact"):
        check_peft_merges_as_it_is_said(LORA, DropsAdapters(), model_folder)
    with pytest.raises(AssertionError, match="merged exactly, KL"):
        check_the_exact_merge_answers_as_the_adapter_beside_the_base(LORA, DropsAdapters(), model_folder, tmp_path)


def test_a_backend_that_claims_to_merge_exactly_and_quantizes_again_is_caught(model_folder: Path) -> None:
    class Boasts(Faulty):
        def load(self, folder: str, params: Value, **options: Any) -> "PreTrainedModel":
            nf4 = plugins.quantization("nf4")
            return nf4.load(folder, nf4.params(), **options)

    with pytest.raises(AssertionError, match="PEFT's merge requantizes, not exact"):
        check_peft_merges_as_it_is_said(LORA, Boasts(), model_folder)


def test_a_backend_that_loads_random_weights_is_caught(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="two loads answer differently"):
        check_loading_gives_the_same_base_each_time(LoadsRandomWeights(), model_folder)
    with pytest.raises(AssertionError, match="after loading"):
        check_what_was_saved_answers_the_same(LORA, LoadsRandomWeights(), model_folder, tmp_path)


@pytest.mark.parametrize("backend", [ForgetsItsScales(), KeepsACopy()], ids=["scales", "copy"])
def test_a_backend_that_takes_more_bits_than_it_says_is_caught(backend: Quantization, wide_folder: Path) -> None:
    with pytest.raises(AssertionError, match="by bits_stored"):
        check_bits_stored(backend, wide_folder)


def test_an_adapter_that_changes_the_output_at_once_is_caught(model_folder: Path) -> None:
    with pytest.raises(AssertionError, match="adding the adapter changed the logits"):
        check_output_is_unchanged_before_training(StartsSomewhere(), fp32, model_folder)


@pytest.mark.parametrize("method", [TrainsTheNorms(), FreezesHalf(), TrainsNothing()], ids=["norms", "half", "nothing"])
def test_a_method_that_trains_other_weights_than_its_adapter_is_caught(method: Method, model_folder: Path) -> None:
    with pytest.raises(AssertionError, match="an adapter trains itself and nothing else"):
        check_gradients_reach_what_is_trained_and_only_that(method, fp32, model_folder)


def test_an_adapter_in_another_dtype_is_caught(model_folder: Path) -> None:
    with pytest.raises(AssertionError, match="added in float16, not fp32"):
        check_adapter_has_the_dtype_of_the_controls(ForgetsTheDtype(), fp32, model_folder, "fp32")


def test_a_method_that_learns_nothing_is_caught(model_folder: Path) -> None:
    with pytest.raises(AssertionError, match="the loss went from"):
        check_training_lowers_the_loss(TrainsNothing(), fp32, model_folder)


def test_a_reload_that_forgets_the_adapter_is_caught(model_folder: Path, tmp_path: Path) -> None:
    class SavesNothing(Lora):
        def prepare(self, model: "PreTrainedModel", params: Value, training: Training) -> "PreTrainedModel":
            model = super().prepare(model, params, training)
            save = model.save_pretrained

            def save_untrained(folder: Path) -> None:
                with torch.no_grad():
                    for name, p in model.named_parameters():
                        if "lora_B" in name:
                            p.zero_()
                save(folder)

            model.save_pretrained = save_untrained
            return model

    with pytest.raises(AssertionError, match="after loading"):
        check_what_was_saved_answers_the_same(SavesNothing(), fp32, model_folder, tmp_path)


def test_every_plugin_can_be_found() -> None:
    # a file that cannot even be imported here would otherwise be skipped without a word
    assert {"full", "lora", "none"} <= set(plugins.names("methods"))
    known = {"fp32", "bf16", "fp16", "int8", "torchao8", "nf4", "fp4"}
    known |= {f"hqq{bits}" for bits in (8, 4, 3, 2, 1)} | {f"gptq{bits}" for bits in (8, 4, 3, 2)}
    assert known <= set(plugins.names("quantization"))
    for name in QUANTIZATIONS:
        assert plugins.quantization(name).bits > 0
    logging.getLogger(__name__).info("not on this machine: %s", [w for q in QUANTIZATIONS if (w := runs_here(q))])
