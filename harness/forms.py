"""One model in its forms: the base at some bit-width, with an adapter beside it, or with the adapter merged into it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from harness import dense, plugins, sources
from harness.errors import StoreError
from harness.spec import Controls, Served
from harness.train import DTYPES, set_adapter_dtype
from harness.trial import Trial

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def stored_as(trial: Trial) -> Served:
    """How the base of a trial that trains is stored."""
    own = plugins.quantization(trial.quantization).params.model_fields
    return Served(quantization=trial.quantization, params={k: v for k, v in trial.params.items() if k in own})


def load(
    location: str, revision: str | None, served: Served, controls: Controls, device: torch.device
) -> "PreTrainedModel":
    """A dense model on disk, its weights stored as asked for."""
    return plugins.quantization(served.quantization).load(
        location,
        plugins.split_params("none", served.quantization, served.params)[1],
        revision=revision,
        compute=DTYPES[controls.train.compute_dtype],
        device=str(device),
        remote_code=controls.model.trust_remote_code,
    )


def base(trial: Trial, served: Served, device: torch.device) -> "PreTrainedModel":
    """The trial's base at some bit-width."""
    found = sources.find_model(trial.controls.model, trial.model_digest)
    return load(found.location, found.revision, served, trial.controls, device)


def attach(model: "PreTrainedModel", kept: Path, controls: Controls) -> "PreTrainedModel":
    """The model with a trained adapter beside it, in the dtype that adapters have in the study.

    Raises:
        StoreError: the adapter is not there.
    """
    from peft import PeftModel

    if not (kept / "adapter_config.json").is_file():
        raise StoreError(f"{kept}: the adapter of the confirmed run is not there", "put it back")
    # PEFT reads an adapter into float32, whatever the base; `is_trainable` marks what is the adapter's
    adapted: PreTrainedModel = PeftModel.from_pretrained(model, str(kept), is_trainable=True)
    set_adapter_dtype(adapted, DTYPES[controls.train.adapter_dtype])
    return adapted.requires_grad_(False)


def merged(model: "PreTrainedModel") -> "PreTrainedModel":
    """The dense model that answers as the base with its adapter does. The model passed is used up."""
    return dense.merge(model)


def merged_by_peft(model: "PreTrainedModel") -> "PreTrainedModel":
    """What PEFT makes of it: on most quantized bases the sum is quantized again. The model passed is used up.

    Raises:
        Exception: PEFT refuses (GPTQ: ValueError).
    """
    return cast("PreTrainedModel", cast(Any, model).merge_and_unload())
