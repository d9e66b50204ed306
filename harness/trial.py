"""One run and its identity."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from harness.spec import Controls, Scalar, Served, Speeds, Training, Value, digest

Phase = Literal["baseline", "search", "confirm", "serve", "speed"]

ZERO_SHOT = "zero-shot"
"""The arm that measures the base model before any training."""


class ServedAs(Value):
    """What is run after training, and how its weights are stored then."""

    name: str
    """Of the bit-width, as the study's `serve.at` calls it."""
    quantization: str
    params: dict[str, Scalar] = {}
    way: Literal["base", "merged", "adapter"]
    """`base`: without an adapter; else as in the study's `serve.ways`."""
    of: str | None = None
    """Id of the confirmed run whose adapter it is; None with `base`."""
    against: Served | None = None
    """How the model is stored that `kl_unquantized` is against: the widest of the study's `serve.at`."""


class Timed(Value):
    """Whose answers are timed, and how."""

    at: dict[str, Served]
    """By the name of the bit-width."""
    speeds: Speeds


class Trial(Value):
    """One run of one arm: everything that is needed to do it, in any process on any machine."""

    study: str
    arm: str
    phase: Phase
    """`baseline`: the base as it is; `search`: tuning, judged on validation rows; `confirm`: judged on test rows;
    `serve`: a base or a confirmed run's model at some bit-width; `speed`: how fast bases answer."""
    seed: int
    """Drives data order, adapter initialisation and dropout."""
    method: str
    quantization: str
    params: dict[str, Scalar]
    """Every parameter of method, quantization and search, the learning rate among them."""
    controls: Controls
    model_digest: str
    """Hash of the base model's files, or the commit on the hub."""
    data_digest: str
    """Hash of the data file, or the commit on the hub."""
    tuning: int = 0
    """Which of the arm's independent tunings it belongs to."""
    number: int | None = None
    """The trial's number in its tuning."""
    keep_model: bool = False
    """Also keep the whole fine-tuned model of a method that has no adapter."""
    served: ServedAs | None = None
    """Phase `serve`: what is evaluated; None in the others."""
    timed: Timed | None = None
    """Phase `speed`: what is timed; None in the others."""
    micro_batch: int | None = None
    """Sequences per forward pass where the controls' own do not fit into memory; the effective batch is the same."""

    @cached_property
    def id(self) -> str:
        """Hash of everything that changes the work, so the same run has the same id wherever it is asked for."""
        unset = {name for name in ("micro_batch", "served", "timed") if getattr(self, name) is None}
        left_out = {"study", "tuning", "number", "keep_model"} | unset
        return digest(self.model_dump(mode="json", exclude=left_out))

    @cached_property
    def configuration(self) -> str:
        """The id that the trial has at the controls' own micro-batch: the same for every micro-batch."""
        return self.at(None).id

    @property
    def training(self) -> Training:
        """The controls' settings of training, at this trial's micro-batch."""
        train = self.controls.train
        return train if self.micro_batch is None else train.model_copy(update={"micro_batch": self.micro_batch})

    @property
    def label(self) -> str:
        rate = self.params.get("learning_rate")
        return (
            f"{self.arm} {self.phase} seed {self.seed}"
            + (f" lr {rate:.3g}" if isinstance(rate, float | int) else "")
            + (f" micro-batch {self.micro_batch}" if self.micro_batch is not None else "")
        )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> "Trial":
        """As ever; the copy has yet to find its ids, which pydantic would copy too."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("id", "configuration"):
            copied.__dict__.pop(name, None)
        return copied

    def at(self, micro_batch: int | None) -> "Trial":
        """The same trial at another micro-batch."""
        return self if micro_batch == self.micro_batch else self.model_copy(update={"micro_batch": micro_batch})
