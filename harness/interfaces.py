"""Every extension point, on one page. A plugin is one file whose last line says which of these it is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from harness.record import Forecast, Record, Step
from harness.spec import Dtype, StudySpec, Training, Value
from harness.trial import Trial

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from harness.configuration import Configuration


class AdapterShape(Value):
    """The low-rank adapters that a method adds: what a forecast needs to know of them."""

    rank: int
    targets: frozenset[str] | None = None
    """Last names of the linear layers that carry one; None: every linear layer but the head."""
    dropout: float = 0.0
    dora: bool = False
    """A trained magnitude per output, whose forward pass needs the norm of the merged weight."""


class Method(Protocol):
    """Which weights are trained."""

    trains_quantized_base: bool
    """Whether it can stand on a base whose weights are quantized."""
    trains: Literal["everything", "adapters", "nothing"]
    """What is trained, for the forecast of memory and time."""

    @property
    def params(self) -> type[Value]:
        """The method's own parameters with their defaults; unknown ones are refused."""
        ...

    def adapter(self, params: Value) -> AdapterShape | None:
        """The adapters that it adds; None where it adds none."""
        ...

    def prepare(self, model: "PreTrainedModel", params: Value, training: Training) -> "PreTrainedModel":
        """The model with the trainable weights marked, and adapters added in `training.adapter_dtype`.

        With an adapter added, the model's outputs must be what they were before.
        """
        ...


class About(Value):
    """What is worth knowing of a quantization beside its bits."""

    grid: Literal["float", "uniform", "normal-float"]
    """Where the levels lie."""
    calibrated: bool = False
    """Whether it looks at data to choose them."""
    kernels: str
    """What multiplies with them, in words."""
    merges: Literal["exact", "requantizes", "drops", "refuses"]
    """What PEFT's `merge_and_unload` does on such a base; the project's own way is exact for all."""


class Quantization(Protocol):
    """How the base's weights are stored."""

    about: About

    bits: float
    """Bits per quantized weight in its codes, scales not counted."""
    needs: Literal["any", "cuda"]
    """The device it runs on."""
    packages: tuple[str, ...]
    """What must be installed beyond the `train` extra."""

    @property
    def params(self) -> type[Value]:
        """The quantization's own parameters with their defaults; unknown ones are refused."""
        ...

    def load(
        self,
        folder: str,
        params: Value,
        *,
        revision: str | None,
        compute: "torch.dtype",
        device: str,
        remote_code: bool,
    ) -> "PreTrainedModel":
        """The base model with its weights stored this way and everything else in `compute`."""
        ...

    def bits_stored(self, params: Value, compute: Dtype = "bf16") -> float:
        """Bits per quantized weight as stored, scales and zeros included (large layers). Some backends keep scales in
        the dtype that they compute in."""
        ...


class Event(Value):
    """A sign of life from a running trial."""

    kind: Literal["stage", "step"]
    stage: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None


class Job(Value):
    """A trial on its way to a launcher: what to run, where its results go and who is told."""

    trial: Trial
    question_id: str
    attempt: int = 1
    folder: Path
    """The study's folder in the store."""
    trackers: dict[str, dict[str, str]] = {}
    """Tracker by name with its settings."""
    time_limit_seconds: float | None = None
    forecast: Forecast | None = None
    """What the trial is expected to need; None where that could not be said."""


class Launcher(Protocol):
    """Where a trial runs: always in a fresh process."""

    slots: int
    """How many trials it runs at a time."""

    def run(self, job: Job, on_event: Callable[[Event], None]) -> Record:
        """Run the trial to its end and return its record; a process that died is a record too.

        Raises:
            Interrupted: `stop` was called while the trial ran; there is no record, and the trial runs again next time.
        """
        ...

    def stop(self) -> None:
        """End every running trial at once."""
        ...


class Interrupted(Exception):
    """The study was stopped while a trial ran."""


class Tracker(Protocol):
    """A copy of what happens, kept elsewhere. It may lack something, never hold what the store does not."""

    def start(self, job: Job) -> None: ...

    def step(self, step: Step) -> None: ...

    def finish(self, record: Record) -> None: ...


class Imported(Value):
    """Results of another program as a study of ours."""

    spec: StudySpec
    """Its `origin` is set; its name is the one that it has unless the user gives another."""
    records: list[Record]
    skipped: dict[str, str] = {}
    """Files that were not used, with the reason."""
    notes: list[str] = []
    """What else a user has to know of this import."""


class Importer(Protocol):
    """Reads what another program has published or left on disk; nothing is computed again and nothing is invented."""

    def read(self, path: Path) -> Imported:
        """The results in a folder or a file. The same files give the same trial ids, whatever lies beside them.

        Raises:
            StoreError: there is nothing that can be read as results of this program, or they belong to several studies.
        """


class Exporter(Protocol):
    """Writes a configuration down for another program, with a table of that program's keys: it never imports it."""

    about: str
    """What comes out of it, in a few words."""

    def files(self, configuration: "Configuration") -> Mapping[str, str]:
        """The text of every file by its path, which is relative. The same configuration gives the same files."""
        ...
