"""No training at all: the base as it is, so that every score has its zero-shot baseline."""

from typing import TYPE_CHECKING, Literal

from harness.interfaces import Method
from harness.spec import Training, Value

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Params(Value):
    """Nothing to set."""


class Untrained:
    params = Params
    trains_quantized_base = True
    trains: Literal["everything", "adapters", "nothing"] = "nothing"

    def adapter(self, params: Value) -> None:
        return None

    def prepare(self, model: "PreTrainedModel", params: Value, training: Training) -> "PreTrainedModel":
        return model.requires_grad_(False)


plugin: Method = Untrained()
