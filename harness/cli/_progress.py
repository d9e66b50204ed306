"""How a study goes, on stderr: one bar with the running trials under it on a terminal, plain lines otherwise."""

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from harness import serving
from harness.interfaces import Event
from harness.record import Record
from harness.spec import StudySpec
from harness.summary import forecast_bytes, peak_bytes
from harness.trial import Phase, Trial
from harness.units import duration, size

HEARTBEAT_SECONDS = 30.0
"""How often a plain log says that a trial is alive."""


class Clock:
    """What is left of a study, from what its trials took so far. Runs of a phase still unknown count as forecast, or as
    the longest where there is no forecast."""

    def __init__(self, spec: StudySpec, slots: int) -> None:
        arms = len(spec.arms)
        self.left: dict[Phase, int] = {
            "baseline": 1,
            "search": arms * spec.search.trials * spec.search.tunings,
            "confirm": arms * len(spec.confirm.seeds),
            **serving.planned(spec),
        }
        self.slots = slots
        self.seconds: dict[Phase, list[float]] = defaultdict(list)
        self.expected: Mapping[Phase, float] = {}

    def add(self, record: Record) -> None:
        if record.goes_on:  # the same run is still to come, at a smaller micro-batch
            return
        self.left[record.phase] = max(0, self.left.get(record.phase, 0) - 1)
        if record.status != "does_not_fit":
            self.seconds[record.phase].append(record.seconds)

    def seconds_left(self) -> float | None:
        means = dict(self.expected)
        means |= {phase: sum(s) / len(s) for phase, s in self.seconds.items() if s and phase != "baseline"}
        if not means:
            return None
        longest = max(means.values())
        return sum(n * means.get(phase, longest) for phase, n in self.left.items()) / self.slots


class PlainLines:
    """One line per event that someone reading a log wants."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.done = 0
        self.said: dict[str, float] = {}
        self.lock = threading.Lock()

    def begin(self, total: int, done: Sequence[Record], expected: Mapping[Phase, float]) -> None:
        self.done = len(done)
        self.clock.expected = expected
        for record in done:
            self.clock.add(record)
        if done:
            self._say(f"going on: {len(done)} of {total} runs are done{_left(self.clock)}")
        elif expected:
            self._say(f"{total} runs{_left(self.clock)} by the forecast")

    def started(self, trial: Trial) -> None:
        self.said[trial.id] = time.monotonic()
        self._say(f"start  {trial.id}  {trial.label}")

    def event(self, trial: Trial, event: Event) -> None:
        now = time.monotonic()
        with self.lock:
            if event.kind != "step" or now - self.said.get(trial.id, 0) < HEARTBEAT_SECONDS:
                return
            self.said[trial.id] = now
        self._say(f"       {trial.id}  {trial.label}  step {event.step}/{event.steps}  loss {event.loss:.3f}")

    def finished(self, record: Record, planned: int) -> None:
        self.done += 1
        self.clock.add(record)
        first, *more = outcome(record).splitlines()
        self._say("\n".join([f"{first}   {self.done}/{planned} runs{_left(self.clock)}", *more]))

    def warned(self, text: str) -> None:
        self._say(f"warning: {text}")

    def close(self) -> None:
        pass

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Bar:
    """A bar for the study and a line for each running trial."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self.tasks: dict[str, Any] = {}
        self.whole: Any = None

    def begin(self, total: int, done: Sequence[Record], expected: Mapping[Phase, float]) -> None:
        self.clock.expected = expected
        for record in done:
            self.clock.add(record)
        self.whole = self.progress.add_task(
            "study", total=total, completed=len(done), note=_left(self.clock).strip(", ")
        )
        self.progress.start()

    def started(self, trial: Trial) -> None:
        self.tasks[trial.id] = self.progress.add_task(trial.label, total=None, note="starting")

    def event(self, trial: Trial, event: Event) -> None:
        task = self.tasks.get(trial.id)
        if task is None:
            return
        if event.kind == "step":
            self.progress.update(task, total=event.steps, completed=event.step, note=f"loss {event.loss:.3f}")
        else:
            self.progress.update(task, note=event.stage)

    def finished(self, record: Record, planned: int) -> None:
        self.clock.add(record)
        task = self.tasks.pop(record.trial_id, None)
        if task is not None:
            self.progress.remove_task(task)
        self.progress.console.print(outcome(record), markup=False, highlight=False)
        self.progress.update(self.whole, advance=1, total=planned, note=_left(self.clock).strip(", "))

    def warned(self, text: str) -> None:
        self.progress.console.print(f"warning: {text}", markup=False, highlight=False)

    def close(self) -> None:
        self.progress.stop()


def watcher(spec: StudySpec, slots: int) -> PlainLines | Bar:
    clock = Clock(spec, slots)
    return Bar(clock) if sys.stderr.isatty() else PlainLines(clock)


def outcome(record: Record) -> str:
    """One line about a run that ended; a second one if it was out of memory."""
    if record.status != "done":
        kept = {"killed": "runs again", "failed": "kept"}.get(record.status, "kept as a result")
        status = record.status.upper().replace("_", " ")
        line = f"{status}  {record.trial_id}  {record.trial.label}: {record.detail} [{kept}]"
        return "\n".join([line, *_out_of_memory(record)])
    loss = record.score("validation_loss")
    scores = [f"{s.task} {s.value:.3f}" for s in record.scores if s.role == "target"]
    shown = "  ".join([*([] if loss is None else [f"validation loss {loss:.3f}"]), *scores])
    peak = peak_bytes(record)
    memory = f"  peak {beside(peak, forecast_bytes(record))}" if peak else ""
    return f"done   {record.trial_id}  {record.trial.label}: {shown}{memory}  {record.seconds:.0f} s"


def _out_of_memory(record: Record) -> list[str]:
    """What a run that was out of memory was expected to need, and what happens next."""
    if record.status != "out_of_memory":
        return []
    expected = forecast_bytes(record)
    said = [f"predicted {size(expected)}"] if expected else []
    if record.goes_on:
        train = record.trial.training
        said.append(f"{record.trial.arm} goes on at micro_batch {train.smaller}, batch {train.batch}; nothing to do")
    return [f"       {'; '.join(said)}"] if said else []


def beside(measured: int, predicted: int | None) -> str:
    """`9.8 GiB (predicted 9.4)`: the second unit only where it differs."""
    if predicted is None:
        return size(measured)
    number, unit = size(predicted).split()
    same = size(measured).endswith(unit)
    return f"{size(measured)} (predicted {number}{'' if same else f' {unit}'})"


def _left(clock: Clock) -> str:
    left = clock.seconds_left()
    return f", about {duration(left)} left" if left else ""
