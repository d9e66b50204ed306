"""Full fine-tuning: every weight is trained."""

from typing import TYPE_CHECKING, Literal

from harness.interfaces import Method
from harness.spec import Training, Value

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Params(Value):
    """Full fine-tuning has no parameters of its own."""


class Full:
    params = Params
    trains_quantized_base = False
    trains: Literal["everything", "adapters", "nothing"] = "everything"

    def adapter(self, params: Value) -> None:
        return None

    def prepare(self, model: "PreTrainedModel", params: Value, training: Training) -> "PreTrainedModel":
        return model.requires_grad_(True)


plugin: Method = Full()
