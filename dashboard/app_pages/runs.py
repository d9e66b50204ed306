"""Every run of a study, and one of them in detail."""

import os
from functools import partial

import pandas as pd
import streamlit as st

from dashboard import shared
from dashboard.views import runs
from harness import metrics, reproduce
from harness.record import Record
from harness.wording import STATUSES

FILTERS = {"status": "Status", "arm": "Configuration", "phase": "Phase"}


@st.cache_resource(max_entries=30, show_spinner=False)
def table_of(
    folder: str, version: str, metric: str, chosen: tuple[tuple[str, ...], ...], _view: shared.View
) -> pd.DataFrame:
    return runs.table(found(_view, chosen), _view.evidence)


def found(seen: shared.View, chosen: tuple[tuple[str, ...], ...]) -> list[Record]:
    """The runs that pass the filters; not kept, since they would hold on to every run of an older version."""
    return runs.found(seen.evidence, dict(zip(FILTERS, chosen, strict=True)))


@st.cache_resource(max_entries=30, show_spinner=False)
def steps_of(folder: str, version: str, trial: str, _view: shared.View) -> pd.DataFrame:
    return _view.store.table("steps", trials=[trial])


def filters() -> tuple[tuple[str, ...], ...]:
    """What is to be seen, each in the address."""
    known = runs.known(view.evidence)
    for column, (key, label) in zip(st.columns(len(FILTERS)), FILTERS.items(), strict=True):
        shared.forget_unknown(f"runs_{key}", known[key])
        column.multiselect(
            label, known[key], key=f"runs_{key}", bind="query-params", placeholder="All",
            format_func=partial(runs.worded, key),
        )  # fmt: skip
    return tuple(tuple(st.session_state[f"runs_{key}"]) for key in FILTERS)


def choose(table: str, ids: list[str]) -> None:
    """Open the run whose row was chosen last."""
    rows = st.session_state[table]["selection"]["rows"]
    st.session_state["run"] = ids[rows[-1]] if rows else ""


def all_runs() -> None:
    chosen = filters()
    records = found(view, chosen)
    st.text(runs.counted(records, view.evidence))
    if not records:
        return
    frame = table_of(str(view.store.folder), view.version, view.evidence.metric, chosen, view)
    key = f"runs_table_{abs(hash((view.store.folder.name, view.version, chosen)))}"
    ids = [r.trial_id for r in records]
    number = st.column_config.NumberColumn
    metric = view.evidence.metric
    named = runs.titles(records, view.evidence)
    picked = st.dataframe(
        frame, hide_index=True, key=key, on_select=lambda: choose(key, ids), selection_mode="multi-row",
        height=min(36 * len(frame) + 38, 430), alt=f"The runs of {view.store.folder.name}: {len(frame)}",
        column_config={
            "Status": st.column_config.TextColumn(pinned=True),
            "Learning rate": number(format="%.3g"),
            "Validation loss": number(named["Validation loss"], format="%.4f", help="Per token; tuning minimises it."),
            "Score": number(named["Score"], format=runs.score_format(metric), help=metrics.plain(metric)),
            "Peak memory": number(named["Peak memory"], format="%.1f", help="Of training, as measured."),
            "Forecast": number(named["Forecast"], format="%.1f", help="The same, as forecast before the run."),
            "Time": number(named["Time"], format="%.1f"),
            "Started": st.column_config.DatetimeColumn(named["Started"], format="YYYY-MM-DD HH:mm"),
            "Reason": st.column_config.TextColumn(width="medium"),
        },
    )  # fmt: skip
    st.caption(f"Choose a row to open the run; two confirmed runs to compare their configurations. {runs.RESULTS}")
    two = runs.comparable([records[i] for i in picked["selection"]["rows"] if i < len(records)])
    if two:
        st.page_link(
            "app_pages/compare.py",
            label=shared.plain(f"Compare {two[0]} with {two[1]}"),
            icon=":material/compare_arrows:",
            query_params={"a": two[0], "b": two[1]},
        )


def detail(record: Record) -> None:
    look = runs.LOOKS[record.status]
    st.subheader(shared.plain(runs.name(record)))
    st.badge(STATUSES[record.status], icon=look.icon, color=look.color)
    st.caption(shared.plain(runs.began(record)))
    reason = runs.why(record)
    if reason:
        st.text(reason)
    shown = runs.figures(record, view.evidence)
    for column, figure in zip(st.columns(len(shown)), shown, strict=True):
        column.metric(
            figure.name, figure.value, figure.note, delta_color="off", delta_arrow="off", border=True, height="stretch",
            help=figure.help,
        )  # fmt: skip
    again(record)
    curve(record)
    stages(record)
    memory(record)
    scores(record)
    settings(record)
    surroundings(record)
    log(record)


def again(record: Record) -> None:
    st.subheader("Make it again")
    command = reproduce.command(record, view.evidence.spec, view.store.folder / "study.yaml")
    if command:
        st.code(command, language=None, wrap_lines=True)
        return
    st.text(runs.no_command(view.evidence))
    if view.evidence.spec.origin is None:
        st.code(reproduce.study(view.store), language=None, wrap_lines=True)


def curve(record: Record) -> None:
    st.subheader("Training")
    steps = steps_of(str(view.store.folder), view.version, record.trial_id, view)
    frame = runs.steps_frame(steps)
    for chart, words in runs.curves(frame):
        st.altair_chart(chart, alt=words)
    if frame.empty:
        st.text(runs.no_steps(record))
    elif thinned := runs.thinned(steps, frame):
        st.caption(thinned)


def stages(record: Record) -> None:
    st.subheader("Stages")
    chart = runs.stages_chart(record)
    if chart is None:
        st.text("No stage was finished.")
        return
    st.altair_chart(chart, alt=runs.stages_said(record))
    st.dataframe(runs.stages_table(record), hide_index=True, alt="Every stage with its time, memory and energy")


def memory(record: Record) -> None:
    st.subheader("Memory of training")
    chart = runs.memory_chart(record)
    if chart is None:
        st.text(runs.no_memory(record))
        return
    st.altair_chart(chart, alt=runs.memory_said(record))
    st.caption(runs.memory_said(record))


def scores(record: Record) -> None:
    st.subheader("Scores")
    table = runs.scores_table(record)
    if table.empty:
        st.text("It was not scored.")
    else:
        st.dataframe(table, hide_index=True, alt=f"Scores of the run {record.trial_id}, each of one seed")


def settings(record: Record) -> None:
    st.subheader("Settings")
    st.dataframe(runs.settings_table(record), hide_index=True, alt=f"What the run {record.trial_id} was made with")
    st.caption("Shared settings are listed where they differ from the default.")
    with st.expander("Every setting as it was used", on_change="rerun", key="runs_resolved") as opened:
        if opened.open:
            st.json(record.resolved or {}, expanded=2)
    with st.expander("Data", on_change="rerun", key="runs_data") as opened:
        if opened.open:
            st.json(record.data or {}, expanded=2)


def surroundings(record: Record) -> None:
    st.subheader("Machine and packages")
    table = runs.machine_table(record)
    if table.empty:
        st.text("Nothing is known of the machine.")
        return
    st.dataframe(table, hide_index=True, alt=f"The machine on which the run {record.trial_id} was made")
    packages = runs.packages_table(record)
    if len(packages):
        with st.expander("Packages", on_change="rerun", key="runs_packages") as opened:
            if opened.open:
                st.dataframe(packages, hide_index=True, alt="Packages and their versions")


def log(record: Record) -> None:
    st.subheader("Log")
    tail, words = runs.log_tail(record, view.store.folder)
    st.text(words)
    if tail is not None:
        st.code(tail, language=None, height=320)
    if view.evidence.spec.origin is not None:
        return
    st.subheader("Weights & Biases")
    page, words = runs.wandb(record, view.store.folder, os.environ)
    st.text(words)
    if page:
        st.link_button("Open in W&B", page, icon=":material/open_in_new:")
    elif words.endswith(":"):
        st.code(reproduce.sync(view.store), language=None, wrap_lines=True)


view = shared.current()
st.header("Runs")
if not view.evidence.records:
    st.text("No run has ended yet. This goes on with the study:")
    st.code(reproduce.study(view.store), language=None, wrap_lines=True)
    st.stop()
all_runs()
wanted = st.text_input(
    "Run", key="run", bind="query-params", placeholder="Id of a run, or the start of one",
    help="What is below is about this run. It is in the address, so that a link leads here.",
)  # fmt: skip
opened_run = runs.find(view.evidence, wanted or "")
if opened_run is not None:
    detail(opened_run)
elif wanted:
    st.text(f"{view.store.folder.name} has no run {wanted}, or several that begin so.")
