"""What a report says, whatever it is written in: sentences, tables and the commands to go on with."""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from harness import __version__, metrics
from harness.decision import Decision, Row, flags
from harness.environment import described
from harness.record import Record
from harness.sources import bare
from harness.summary import Evidence, Summary, peak_bytes
from harness.trade_offs import TradeOff, along, axes
from harness.units import duration, energy, money, percent, size
from harness.wording import (
    PHASES,
    STATUSES,
    about,
    configuration_cells,
    difference,
    quality,
    quality_title,
    trade_off_findings,
    trade_off_reading,
)

if TYPE_CHECKING:
    pass

SHOWN_IDS = 8
"""Trials that are named one by one where something went wrong."""


@dataclass(frozen=True)
class Runs:
    """A cell that names trials."""

    ids: list[str]
    more: int = 0


Cell = str | Runs


@dataclass(frozen=True)
class Table:
    title: str
    head: list[str]
    rows: list[list[Cell]]
    anchored: bool = False
    """Its rows begin with a trial id that others point to."""


@dataclass(frozen=True)
class Content:
    """What a report says, whatever it is written in."""

    title: str
    about: list[str]
    badge: str
    verdict: list[str]
    """The sentences of `harness recommend`."""
    chosen: Table | None
    settings: list[tuple[str, str]]
    told_apart: str
    trade_off: list[str]
    reading: list[str]
    configurations: Table
    runs: Table
    ledger: Table
    failures: Table
    to_settle: list[str]
    next_command: str | None
    held_back: list[str]
    environment: Table
    method: list[str]
    made: str
    command: str


def content_of(evidence: Evidence, summary: Summary, decision: Decision, output: str) -> Content:
    """What a report says, from what the page and `harness recommend` rest on."""
    found = along_memory(evidence, summary, decision)
    recommendation = decision.recommendation
    badge = {"shown": "Shown", "default": "Not shown", "none": "No configuration fits"}[recommendation.answer]
    badge = "Not finished" if recommendation.unfinished else badge
    chosen = decision.chosen
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by harness {__version__}"
    return Content(
        title=decision.question or f"What {decision.study} says",
        about=about(evidence, decision),
        badge=badge,
        verdict=[recommendation.sentence, recommendation.full_sentence, *recommendation.details],
        chosen=_chosen(decision),
        settings=_settings(decision) if chosen else [],
        told_apart=decision.told_apart,
        trade_off=trade_off_findings(found) if found else [],
        reading=trade_off_reading(found, decision) if found else [],
        configurations=_configurations(evidence, decision),
        runs=_runs(evidence, decision),
        ledger=_ledger(summary),
        failures=_failures(evidence),
        to_settle=decision.to_settle,
        next_command=decision.next_command and without_folders(decision.next_command),
        held_back=decision.held_back,
        environment=_environment(evidence),
        method=_method(evidence, decision),
        made=made,
        command=" ".join(["harness report", decision.study, output, *map(shlex.quote, flags(decision.limits))]),
    )


def along_memory(evidence: Evidence, summary: Summary, decision: Decision) -> TradeOff | None:
    """Quality against memory, or where that was not measured against the first cost that was."""
    known = axes(decision)
    return along(known[0], evidence, summary, decision) if known else None


def _chosen(decision: Decision) -> Table | None:
    """The configuration to use beside the baseline."""
    chosen = decision.chosen
    if chosen is None:
        return None
    mine, base = decision.row(chosen.arm), decision.row(decision.baseline)
    priced = decision.per_hour is not None
    costs: list[tuple[str, Any, float | None, float | None]] = [
        ("Peak memory", size, mine.peak_bytes, base.peak_bytes),
        ("Time of a run", duration, mine.seconds, base.seconds),
        *([("Cost of a run", lambda v: money(v, decision.currency), mine.cost, base.cost)] if priced else []),
        ("Energy of training", energy, mine.energy_joules, base.energy_joules),
    ]
    rows: list[list[Cell]] = [
        [
            quality_title(decision),
            quality(mine, decision),
            quality(base, decision),
            difference(mine.difference, decision),
        ]
    ]
    rows += [[name, say(a), say(b), _share(a, b)] for name, say, a, b in costs if a is not None or b is not None]
    if mine.arm == base.arm:
        return Table("The configuration to use, which is the baseline", ["", mine.arm], [row[:2] for row in rows])
    return Table("The configuration to use", ["", mine.arm, f"{base.arm} (baseline)", "Difference"], rows)


def _share(value: float | None, base: float | None) -> str:
    if value is None or not base:
        return "not known"
    return percent(value / base - 1, sign="+")


def _settings(decision: Decision) -> list[tuple[str, str]]:
    chosen = decision.chosen
    assert chosen is not None
    found = [
        ("Method", f"{chosen.method} on {chosen.quantization}"),
        ("Settings", _params(chosen.params)),
        ("Micro-batch", f"{chosen.micro_batch} sequences"),
        ("Trial", chosen.trial_id),
    ]
    if chosen.adapter:
        found.append(("Adapter or model", f"{chosen.adapter}, in the study's folder"))
    if chosen.command:
        found.append(("Makes this run again", without_folders(chosen.command)))
    return found


def _params(params: Mapping[str, Any]) -> str:
    said = [f"{key.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
            for key, value in params.items()]  # fmt: skip
    return ", ".join(said) or "none"


def _configurations(evidence: Evidence, decision: Decision) -> Table:
    rows = [_configuration(row, evidence, decision) for row in decision.rows]
    return Table("All configurations", [*rows[0]], [[*row.values()] for row in rows])


def _configuration(row: Row, evidence: Evidence, decision: Decision) -> dict[str, Cell]:
    used = " (to use)" if decision.chosen and decision.chosen.arm == row.arm else ""
    cells = configuration_cells(row, decision)
    return {
        "Configuration": cells.pop("Configuration") + used,
        "Method": f"{row.method} on {row.quantization}",
        **cells,
        "Trials": Runs([r.trial_id for r in evidence.runs if r.trial.arm == row.arm]),
    }


def _runs(evidence: Evidence, decision: Decision) -> Table:
    """The judged runs, which every number of a configuration is a mean of."""
    order = {row.arm: i for i, row in enumerate(decision.rows)}
    runs = sorted(evidence.runs, key=lambda r: (order.get(r.trial.arm, len(order)), r.trial.seed))
    head = ["Trial", "Configuration", "Seed", quality_title(decision), "Peak memory", "Time", "Settings"]
    rows: list[list[Cell]] = [
        [
            r.trial_id,
            r.trial.arm,
            str(r.trial.seed),
            metrics.score(r.score(evidence.metric), evidence.metric),
            size(peak_bytes(r)),
            duration(r.seconds),
            _params(r.trial.params),
        ]
        for r in runs
    ]
    return Table("The runs behind the numbers", head, rows, anchored=True)


def _ledger(summary: Summary) -> Table:
    head = [
        "Configuration",
        "Tuning runs",
        "Time of tuning",
        "Learning rate chosen",
        "Micro-batch",
        "All runs",
        "Time of all",
    ]
    rows: list[list[Cell]] = [
        [
            row.arm,
            str(row.search_trials),
            duration(row.search_seconds),
            "-" if row.learning_rate is None else f"{row.learning_rate:.3g}" + (" (edge)" if row.at_edge else ""),
            row.micro_batch or "-",
            ", ".join(f"{n} {words}" for status, words in STATUSES.items() if (n := row.statuses.get(status)))
            or "none yet",
            duration(row.spent_seconds),
        ]
        for row in summary.arms
    ]
    tuned = any(row.search_trials for row in summary.arms)
    return Table("Tuning ledger", head, rows if tuned else [])


def _failures(evidence: Evidence) -> Table:
    """What did not end well, runs that ended alike in one row."""
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for r in evidence.records:
        if r.status != "done":
            how = (r.trial.arm, PHASES[r.phase], STATUSES[r.status], r.detail or "")
            alike.setdefault(how, []).append(r.trial_id)
    rows: list[list[Cell]] = [
        [arm, phase, status, str(len(ids)), detail, Runs(ids[:SHOWN_IDS], max(len(ids) - SHOWN_IDS, 0))]
        for (arm, phase, status, detail), ids in alike.items()
    ]
    return Table("Failures", ["Configuration", "Phase", "Ended", "Runs", "Why", "Trials"], rows)


def _environment(evidence: Evidence) -> Table:
    """Hardware and versions of the judged runs, or of all where none is judged yet."""
    records = evidence.runs or evidence.records
    some = [r.environment for r in records if r.environment]
    controls = evidence.spec.controls
    model, data = _digests(records, "model_digest"), _digests(records, "data_digest")
    known = {
        "Model": bare(controls.model.id) + (f", digest {model}" if model else ""),
        "Data": bare(controls.data.path) + (f", digest {data}" if data else ""),
        "Device": _distinct(described(e) for e in some),
        "System": _distinct(str(e.get("system") or "") for e in some),
        "Python": _distinct(str(e.get("python") or "") for e in some),
        "Packages": _distinct(_packages(e) for e in some),
        "Made by": _distinct(_made_by(e) for e in some),
    }
    origin = evidence.spec.origin
    if origin:
        source = [origin.tool, origin.url, origin.revision, origin.licence]
        known["Results of"] = ", ".join(str(part) for part in source if part)
    return Table("Environment", ["What", "Value"], [[k, v] for k, v in known.items() if v])


def _digests(records: Sequence[Record], field: str) -> str:
    return _distinct(str(getattr(r.trial, field) or "") for r in records)


def _distinct(values: Iterable[str]) -> str:
    """What occurs, the most frequent first."""
    return "; ".join(value for value, _ in Counter(v for v in values if v).most_common())


def _packages(environment: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in (environment.get("packages") or {}).items())


def _made_by(environment: Mapping[str, Any]) -> str:
    version, commit = environment.get("harness"), environment.get("commit")
    return (f"harness {version}" if version else "") + (f", commit {commit}" if commit else "")


def _method(evidence: Evidence, decision: Decision) -> list[str]:
    """How the numbers came about, in three sentences."""
    made = (
        f"The results were made by {decision.origin} and taken in as they are; nothing was run again."
        if decision.origin
        else "Every configuration is tuned with the same number of runs, and its best settings are run again on seeds "
        "that tuning never saw; only these runs are judged."
    )
    compared = (
        f"No difference between them is shown: {evidence.elsewhere}."
        if evidence.elsewhere
        else "Configurations are compared item by item over seeds, with intervals that hold both the noise between "
        "runs and that between items, adjusted where several are compared at once."
    )
    return [
        made,
        compared,
        "The cheapest configuration shown to be within the margin of every other that keeps the limits is recommended; "
        "where none is shown to be, the cheapest that may be the best is named, and said to be not shown.",
    ]


def without_folders(command: str) -> str:
    """A command line without the folders of the machine it was made on: a store by its name, a study file below it."""
    words = []
    for word in shlex.split(command):
        path = PurePath(word)
        kept = path.parts[-3:] if path.suffix in {".yaml", ".yml"} else path.parts[-1:]
        words.append(str(PurePath(*kept)) if path.is_absolute() and kept else word)
    return " ".join(shlex.quote(word) for word in words)
