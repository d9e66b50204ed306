"""Every run of a study, and one of them in detail, as the page of that name shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from dashboard.views.settings import flat, said, value
from harness import metrics
from harness.charts import Chart
from harness.connection import run_page
from harness.environment import described
from harness.record import NO_ROOM, OBJECTIVE, Record, Status
from harness.spec import Controls
from harness.summary import Evidence, forecast_bytes, peak_bytes, score_name
from harness.units import byte_scale, duration, energy, is_share, size, time_scale
from harness.wording import PHASES, ROLES, STATUSES
from harness.words import capital, count


@dataclass(frozen=True)
class Look:
    """How a status looks: a sign for the table, an icon and a colour for the badge."""

    sign: str
    icon: str
    color: str


LOOKS: dict[Status, Look] = {
    "done": Look("✓", ":material/check_circle:", "green"),
    "out_of_memory": Look("▲", ":material/memory:", "orange"),
    "does_not_fit": Look("△", ":material/sd_card_alert:", "orange"),
    "diverged": Look("↗", ":material/trending_up:", "orange"),
    "pruned": Look("–", ":material/content_cut:", "gray"),
    "timed_out": Look("◷", ":material/timer_off:", "orange"),
    "killed": Look("■", ":material/cancel:", "red"),
    "failed": Look("✕", ":material/error:", "red"),
}
RESULTS = (
    "Out of memory, does not fit, diverged and timed out are results of a configuration; failed and killed are not."
)

DRAWN = 1500
"""Most steps of a curve that are drawn."""
LOG_LINES = 60
LOG_BYTES = 256 * 1024
"""Read of the end of a log: enough for its last lines."""
KINDS = {
    "weights": "Weights of the base",
    "adapter": "Adapter",
    "optimizer": "Optimizer state",
    "step_peak": "One step (activations, gradients)",
}
"""Memory by kind, as its parts add up to the peak."""
HERE = ("commit", "harness", "python", "system", "memory_bytes")
"""What is said of the machine, in this order, beside its hardware and packages."""


@dataclass(frozen=True)
class Figure:
    name: str
    value: str
    note: str | None
    help: str


# the table


def short(seconds: float) -> str:
    """A time of which fractions of a second may be all there is."""
    if seconds < 0.1:
        return f"{1000 * seconds:.1f} ms"
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def worded(key: str, value: str) -> str:
    """A value of a filter as it is read."""
    words: Mapping[str, str] = {"status": STATUSES, "phase": PHASES}.get(key, {})  # type: ignore[assignment]
    return words.get(value, value)


def found(evidence: Evidence, chosen: Mapping[str, Sequence[str]]) -> list[Record]:
    """The runs that were asked for, the latest first. An empty choice takes all."""
    return [
        r
        for r in reversed(evidence.records)
        if (not chosen["status"] or r.status in chosen["status"])
        and (not chosen["arm"] or r.trial.arm in chosen["arm"])
        and (not chosen["phase"] or r.phase in chosen["phase"])
    ]


def known(evidence: Evidence) -> dict[str, list[str]]:
    """Statuses, arms and phases that occur."""
    return {
        "status": list(dict.fromkeys(s for s in LOOKS if any(r.status == s for r in evidence.records))),
        "arm": list(dict.fromkeys([*evidence.spec.arms, *(r.trial.arm for r in evidence.records)])),
        "phase": list(dict.fromkeys(r.phase for r in evidence.records)),
    }


def counted(records: Sequence[Record], evidence: Evidence) -> str:
    """How many runs there are and how they ended."""
    ends = [(words, sum(r.status == s for r in records)) for s, words in STATUSES.items()]
    parts = ", ".join(f"{n:,} {words}" for words, n in ends if n)
    whole = count(len(evidence.records), "run")
    number = f"{len(records):,} of {whole}" if len(records) != len(evidence.records) else whole
    return f"{number}: {parts}." if parts else f"{number}."


def table(records: Sequence[Record], evidence: Evidence) -> pd.DataFrame:
    """One row per run: numbers as numbers, in the units that `titles` names. What is known of none is left out."""
    metric = evidence.metric
    rows = [
        {
            "Status": f"{LOOKS[r.status].sign} {STATUSES[r.status]}",
            "Configuration": r.trial.arm,
            "Phase": PHASES[r.phase],
            "Seed": str(r.trial.seed),
            "Learning rate": r.trial.params.get("learning_rate"),
            "Validation loss": r.score(OBJECTIVE),
            "Score": r.score(metric),
            "Peak memory": peak_bytes(r),
            "Forecast": forecast_bytes(r),
            "Time": r.seconds,
            "Started": r.started_at,
            "Reason": r.detail or "",
            "Run": r.trial_id,
        }
        for r in records
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    numbers = ["Learning rate", "Validation loss", "Score", "Peak memory", "Forecast", "Time"]
    frame[numbers] = frame[numbers].astype("float64")
    frame["Score"] *= metrics.scale(metric)
    frame[["Peak memory", "Forecast"]] /= memory_unit(records)[0]
    frame["Time"] /= time_unit(records)[0]
    unknown = [c for c in numbers if frame[c].isna().all()]
    return frame.drop(columns=unknown)


def titles(records: Sequence[Record], evidence: Evidence) -> dict[str, str]:
    """The names of the columns that hold numbers, with their units."""
    metric = evidence.metric
    memory, time = memory_unit(records)[1], time_unit(records)[1]
    return {
        "Validation loss": "Validation loss (nats per token)",
        "Score": f"Score, one seed ({'%' if is_share(metric) else metrics.unit(metric)})",
        "Peak memory": f"Peak memory ({memory})",
        "Forecast": f"Forecast ({memory})",
        "Time": f"Time ({time})",
        "Started": "Started (UTC)",
    }


def score_format(metric: str) -> str:
    """How the column of scores is written."""
    return "%.1f" if is_share(metric) else "%.4g"


def memory_unit(records: Sequence[Record]) -> tuple[int, str]:
    """The one in which the peaks of runs are listed."""
    return byte_scale(max((p for r in records for p in (peak_bytes(r), forecast_bytes(r)) if p is not None), default=0))


def time_unit(records: Sequence[Record]) -> tuple[float, str]:
    """The one in which the times of runs are listed."""
    return time_scale(max((r.seconds for r in records), default=0.0))


COLUMNS = [
    "Status", "Configuration", "Phase", "Seed", "Learning rate", "Validation loss", "Score", "Peak memory", "Forecast",
    "Time", "Started", "Reason", "Run",
]  # fmt: skip


def comparable(records: Sequence[Record]) -> tuple[str, str] | None:
    """The two configurations of two confirmed runs that were chosen; None where there is nothing to compare."""
    judged = [r.trial.arm for r in records if r.phase == "confirm" and r.status == "done"]
    return (judged[0], judged[1]) if len(records) == 2 and len(set(judged)) == 2 else None


# one run


def find(evidence: Evidence, wanted: str) -> Record | None:
    """The run of an id, or of the start of one that no other run shares."""
    wanted = wanted.strip().lower()
    some = [r for r in evidence.records if r.trial_id.startswith(wanted)] if wanted else []
    return some[0] if len(some) == 1 else None


def name(record: Record) -> str:
    rate = record.trial.params.get("learning_rate")
    at = f", learning rate {rate:.3g}" if isinstance(rate, int | float) else ""
    return f"{record.trial.arm}, {PHASES[record.phase]}, seed {record.trial.seed}{at}"


def began(record: Record) -> str:
    again = f", attempt {record.attempt}" if record.attempt > 1 else ""
    return f"Run {record.trial_id}{again}, started {record.started_at:%Y-%m-%d %H:%M} UTC"


def why(record: Record) -> str | None:
    """Why a run is not done, and what came of it."""
    if record.status == "done":
        return None
    words = capital(STATUSES[record.status]) + (f": {record.detail}" if record.detail else "")
    after = " It was tried again at a smaller micro-batch." if record.goes_on else ""
    result = " This is a result of the configuration, not an error." if record.status in NO_ROOM else ""
    return f"{words}.{result}{after}"


def figures(record: Record, evidence: Evidence) -> list[Figure]:
    """Time, memory, quality and throughput, with what was forecast of them."""
    expected = record.forecast
    peak, due = peak_bytes(record), forecast_bytes(record)
    rate = record.train.tokens_per_second if record.train else None
    told = expected.tokens_per_second if expected else None
    quality, value = _quality(record, evidence)
    return [
        Figure(
            "Time",
            duration(record.seconds),
            f"forecast {duration(expected.seconds.mid)}" if expected else "no forecast",
            "Wall clock of the whole run, without the start of its process.",
        ),
        Figure(
            "Peak memory",
            size(peak),
            _beside(peak, None if due is None else size(due)),
            "Of training: what the allocator held on a GPU, tensors by kind on a CPU.",
        ),
        Figure(
            quality,
            value,
            "not scored" if value == "-" else "one seed",
            f"{quality} of this run alone: it says nothing of the noise between runs.",
        ),
        Figure(
            "Throughput (tokens/s)",
            "-" if rate is None else f"{rate:,.0f}",
            _beside(rate, None if told is None else f"{told:,.0f}"),
            "Real tokens of training, padding not counted, after the first steps.",
        ),
    ]


def _beside(measured: float | None, expected: str | None) -> str:
    """What stands under a figure: its forecast, and whether there is a measurement at all."""
    if expected is None:
        return "no forecast" if measured is not None else "not measured"
    return f"forecast {expected}"


def _quality(record: Record, evidence: Evidence) -> tuple[str, str]:
    """What a run was judged by: the study's metric, or before that the loss that tuning minimises."""
    found = record.score(evidence.metric)
    if found is not None:
        return capital(metrics.plain(evidence.metric)), metrics.score(found, evidence.metric)
    loss = record.score(OBJECTIVE)
    return "Validation loss", metrics.score(loss, OBJECTIVE, none="-")


# its curve


def steps_frame(steps: pd.DataFrame) -> pd.DataFrame:
    """Steps as they are drawn, thinned to so many as a chart can show."""
    every = max(1, -(-len(steps) // DRAWN))
    columns = ["step", "loss", "learning_rate", "seconds"]
    return steps.sort_values("step")[columns].iloc[::every].reset_index(drop=True) if len(steps) else pd.DataFrame()


def curves(frame: pd.DataFrame) -> list[tuple[Chart, str]]:
    """Training loss and learning rate over steps, each with its sentence."""
    if frame.empty:
        return []
    first, last = frame.iloc[0], frame.iloc[-1]
    loss = _curve(frame, "loss", "Training loss (nats per token)", 260)
    found = [
        (loss, f"Training loss from {first.loss:.3g} at step {first.step:.0f} to {last.loss:.3g} at {last.step:.0f}.")
    ]
    if frame["learning_rate"].notna().any():
        rate = _curve(frame, "learning_rate", "Learning rate", 150)
        most = frame["learning_rate"].max()
        found.append((rate, f"Learning rate: at most {most:.3g}, {last.learning_rate:.3g} at the end."))
    return found


def _curve(frame: pd.DataFrame, column: str, title: str, height: int) -> Chart:
    drawn = frame.dropna(subset=[column])
    tips = [
        alt.Tooltip("step:Q", title="Step"),
        alt.Tooltip(f"{column}:Q", title=title, format=".4~g"),
        alt.Tooltip("seconds:Q", title="Since training began (s)", format=".1f"),
    ]
    return (
        alt.Chart(drawn)
        .mark_line(point={"size": 14, "filled": True} if len(drawn) < 80 else False)
        .encode(
            x=alt.X("step:Q", title="Step", axis=alt.Axis(format="d", tickMinStep=1)),
            y=alt.Y(f"{column}:Q", title=title, axis=alt.Axis(format="~g")),
            tooltip=tips,
        )
        .properties(height=height)
    )


def thinned(steps: pd.DataFrame, frame: pd.DataFrame) -> str | None:
    return f"{len(frame):,} of {len(steps):,} steps are drawn." if len(frame) < len(steps) else None


def no_steps(record: Record) -> str:
    """Why there is no curve."""
    if record.trial.method == "none":
        return "The base is not trained, so there is no curve."
    if record.phase in {"serve", "speed"}:
        return "Nothing is trained in this phase, so there is no curve."
    if record.status == "does_not_fit":
        return "It was not run, so there is no curve."
    return "No step was kept of this run."


# its stages


def stages_frame(record: Record) -> pd.DataFrame:
    """When each stage began and ended, in seconds since the run began."""
    ends, rows = 0.0, []
    for stage in record.stages:
        rows.append({"stage": stage.stage, "from": ends, "to": ends + stage.seconds, "time": short(stage.seconds)})
        ends += stage.seconds
    return pd.DataFrame(rows, columns=["stage", "from", "to", "time"])


def stages_chart(record: Record) -> Chart | None:
    """The stages one after another."""
    frame = stages_frame(record)
    if frame.empty:
        return None
    scale, name = time_scale(frame["to"].max())
    frame[["from", "to"]] /= scale
    title = f"Since the run began ({name})"
    y = alt.Y("stage:N", sort=list(frame["stage"]), title=None, axis=alt.Axis(labelOverlap=False, grid=False))
    tips = [alt.Tooltip("stage:N", title="Stage"), alt.Tooltip("time:N", title="Time")]
    base = alt.Chart(frame)
    bars = base.mark_bar(height=16).encode(y=y, x=alt.X("from:Q", title=title), x2="to:Q", tooltip=tips)
    words = base.mark_text(align="left", dx=6, color="gray").encode(y=y, x=alt.X("to:Q", title=title), text="time:N")
    return alt.layer(bars, words).properties(
        height=30 * len(frame) + 50, padding={"left": 4, "top": 4, "right": 56, "bottom": 4}
    )


def stages_said(record: Record) -> str:
    return "Stages: " + ", ".join(f"{s.stage} {short(s.seconds)}" for s in record.stages) + "."


def stages_table(record: Record) -> pd.DataFrame:
    """Every stage with its time, what was forecast of it, its peaks and its energy. Columns without a number are left
    out."""
    expected = record.forecast.stage_seconds if record.forecast else {}
    rows = [
        {
            "Stage": s.stage,
            "Time": short(s.seconds),
            "Forecast": short(expected[s.stage].mid) if s.stage in expected else "-",
            "Live tensors, peak": size(s.allocated_peak_bytes),
            "Held by the allocator, peak": size(s.reserved_peak_bytes),
            "Of the process on the GPU": size(s.device_peak_bytes),
            "Resident on the host, peak": size(s.rss_peak_bytes),
            "Energy of the GPU": energy(s.energy_joules),
        }
        for s in record.stages
    ]
    frame = pd.DataFrame(rows)
    return frame[[c for c in frame.columns if (frame[c] != "-").any()]]


# its memory


def memory_frame(record: Record) -> pd.DataFrame:
    """Bytes by kind, measured and forecast, and their sum."""
    rows: list[dict[str, Any]] = []
    expected = record.forecast.tensors if record.forecast else None
    for which, tensors in (("measured", record.memory), ("forecast", expected)):
        if tensors is None:
            continue
        values = {label: getattr(tensors, key) for key, label in KINDS.items()}
        values["Peak (their sum)"] = tensors.peak
        rows += [
            {"kind": label, "which": which, "bytes": value} for label, value in values.items() if value is not None
        ]
    return pd.DataFrame(rows, columns=["kind", "which", "bytes"])


def memory_chart(record: Record) -> Chart | None:
    """Measured memory as bars, what was forecast as a mark on them."""
    frame = memory_frame(record)
    if frame.empty:
        return None
    by, words = byte_scale(frame["bytes"].max())
    frame["shown"], frame["text"] = frame["bytes"] / by, frame["bytes"].map(size)
    title = f"Memory ({words})"
    order = [k for k in [*KINDS.values(), "Peak (their sum)"] if k in set(frame["kind"])]
    y = alt.Y("kind:N", sort=order, title=None, axis=alt.Axis(labelOverlap=False, labelLimit=210, grid=False))
    x = alt.X("shown:Q", title=title)
    present = [w for w in ("measured", "forecast") if w in set(frame["which"])]
    color = alt.Color(
        "which:N", scale=alt.Scale(domain=["measured", "forecast"]),
        legend=alt.Legend(title=None, orient="top", values=present, symbolType="square"),
    )  # fmt: skip
    tips = [
        alt.Tooltip("kind:N", title="Memory"), alt.Tooltip("which:N", title="As"), alt.Tooltip("text:N", title="Bytes"),
    ]  # fmt: skip
    base = alt.Chart(frame)
    bars = base.transform_filter("datum.which == 'measured'").mark_bar(height=14, opacity=0.85)
    marks = base.transform_filter("datum.which == 'forecast'").mark_tick(thickness=4, size=24, opacity=1)
    return alt.layer(
        bars.encode(y=y, x=x, color=color, tooltip=tips), marks.encode(y=y, x=x, color=color, tooltip=tips)
    ).properties(height=32 * len(order) + 90, padding={"left": 4, "top": 4, "right": 14, "bottom": 4})


def memory_said(record: Record) -> str:
    """The chart in words."""
    measured = record.memory.peak if record.memory else None
    tensors = record.forecast.tensors if record.forecast else None
    parts = [
        f"measured {size(measured)}" if measured is not None else "not measured",
        f"forecast {size(tensors.peak)}" if tensors and tensors.peak is not None else "no forecast",
    ]
    return f"Peak of tensors: {', '.join(parts)}. Bars are measured, upright marks forecast before the run."


def no_memory(record: Record) -> str:
    if record.trial.method == "none" or record.phase in {"serve", "speed"}:
        return "Nothing is trained in this run, so no memory of training was measured."
    return "No memory by kind was measured or forecast for this run."


# its scores, settings and surroundings


def scores_table(record: Record) -> pd.DataFrame:
    """Every score of the run with what it is over."""
    return pd.DataFrame(
        [
            {
                "Score": capital(metrics.plain(score_name(s))),
                "Value": f"{metrics.score(s.value, score_name(s))} (one seed)",
                "Items": f"{s.items:,}",
                "Always the most frequent answer": metrics.score(s.majority, score_name(s), none="-"),
                "For": ROLES[s.role],
                "Better is": "more" if s.higher_is_better else "less",
            }
            for s in record.scores
        ]
    )


def settings_table(record: Record) -> pd.DataFrame:
    """What the run was made with, of the shared settings only those that are not the default."""
    trial = record.trial
    plain_controls = Controls(model=trial.controls.model, data=trial.controls.data)
    ours, theirs = (flat(c.model_dump(mode="json")) for c in (trial.controls, plain_controls))
    own = {
        "method": trial.method,
        "quantization": trial.quantization,
        **trial.params,
        **({"micro_batch": trial.micro_batch} if trial.micro_batch is not None else {}),
        **({f"served.{k}": v for k, v in trial.served.model_dump().items() if v} if trial.served else {}),
    }
    rows = [(said(k), value(v), "") for k, v in own.items()]
    rows += [(said(k), value(ours[k]), "") for k in ("model.id", "data.path")]
    rows += [(said(k), value(v), value(theirs.get(k))) for k, v in ours.items() if v != theirs.get(k)]
    return pd.DataFrame(rows, columns=["Setting", "Value", "Default"])


def machine_table(record: Record) -> pd.DataFrame:
    """The hardware and the programs that a run was made with."""
    known = record.environment
    rows = [(said(k), size(known[k]) if k == "memory_bytes" else value(known[k])) for k in HERE if known.get(k)]
    if known.get("cpu") or known.get("gpus"):
        rows.append(("Hardware", described(known)))
    named = {
        "Memory bytes": "Memory of the host",
        "Harness": "harness",
        "Commit": "Commit of harness",
    }
    return pd.DataFrame([(named.get(k, k), v) for k, v in rows], columns=["What", "Value"])


def packages_table(record: Record) -> pd.DataFrame:
    packages = record.environment.get("packages") or {}
    return pd.DataFrame(sorted(packages.items()), columns=["Package", "Version"])


def log_tail(record: Record, folder: Path) -> tuple[str | None, str]:
    """The end of a run's log, or None; and what there is to say of it."""
    if not record.log_path:
        return None, "No log was kept of this run."
    path = (folder / record.log_path).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None, f"The log is not in the study's folder: {record.log_path}"
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return None, f"The log {record.log_path} is not there any more."
    if not lines:
        return None, f"The log {record.log_path} is empty."
    return "\n".join(lines[-LOG_LINES:]), f"The last {min(len(lines), LOG_LINES)} lines of {record.log_path}"


def wandb(record: Record, folder: Path, environment: Mapping[str, str]) -> tuple[str | None, str]:
    """Where W&B shows the run, where that can be known without asking; and what to say of it."""
    run = f"{record.trial_id}-{record.attempt}"
    kept = list((folder / "wandb").glob(f"*run-*-{run}"))
    if not kept:
        return None, "No W&B run was written of it yet. This writes and sends what is missing:"
    if not any(any(path.glob("*.wandb.synced")) for path in kept):
        return None, "Its W&B run is on disk and was not sent yet. This sends it:"
    page = run_page(environment, record.trial.study, run)
    if page is None:
        return None, f"It was sent to W&B as run {run}. Its address is known with WANDB_ENTITY set."
    return page, f"It was sent to W&B as run {run}."


def no_command(evidence: Evidence) -> str:
    """Why there is no command for this run alone."""
    origin = evidence.spec.origin
    if origin is not None:
        return f"It was made by {origin.tool}, so this program has no command that makes it again."
    return "There is no command for this run alone; the study's own command makes it:"
