"""Was the search fair, and is it finished?"""

import pandas as pd
import streamlit as st

from dashboard import drawing, shared
from dashboard.views import search, search_charts, search_rates
from harness import reproduce
from harness.summary import Evidence
from harness.units import percent


@st.cache_resource(max_entries=shared.KEPT, show_spinner="Reading the trial log")
def read(folder: str, version: str) -> search.Tuning:
    """On the study's own metric: what is left to run does not depend on what the side bar says."""
    return search.tuning(shared.own_results(folder, version)[0])


def several(found: search.Tuning) -> list[str]:
    """The tunings to show: all, or those that were picked."""
    known = search.series_of(found)
    if len(known) < 2:
        return known
    shared.forget_unknown("search_shown", known)
    picked = st.multiselect(
        "Configurations", known, default=known[: search.SERIES], key="search_shown", max_selections=search.SERIES,
        bind="query-params", help="Shown in the two charts below; empty: all of them.",
    )  # fmt: skip
    return [name for name in known if name in picked] or known[: search.SERIES]


def charts(found: search.Tuning) -> None:
    order = several(found)
    frame: pd.DataFrame = found.tried[found.tried["series"].isin(order)]
    drawn = search_charts.thinned(frame)
    chosen = [c for c in found.chosen if c.series in order]

    st.subheader("History")
    if not chosen:
        st.text("No tuning trial was completed, so there is no loss to draw. The ledger above says how they ended.")
        return
    if frame["number"].max() > 1:
        st.altair_chart(search_charts.history(drawn, order), alt=search.history_alt(frame))
        st.caption(
            "Points are tuning trials, one seed each; lines are the lowest loss so far. Tuning minimises the loss on "
            f"the validation rows and sees neither test rows nor tasks. {search_charts.signs(frame)} "
            f"{search_charts.left_out(frame, drawn)}"
        )
    else:
        st.text("One tuning trial each: there is no history to draw.")

    st.subheader("Learning rates")
    if any(c.rates > 1 for c in chosen):
        st.altair_chart(
            search_charts.rates(drawn, chosen, order, search.others_of(found)), alt=search_rates.rates_alt(chosen)
        )
        st.caption(
            "Rings mark the best learning rate of each configuration; bars are the range over its confirmed runs on "
            "the same rows, on fresh seeds. “edge”: the best is the lowest or highest that was tried."
        )
    else:
        st.text("One learning rate each: there is no curve to draw.")
    st.dataframe(
        search_rates.rates_table(chosen), hide_index=True, alt=search_rates.rates_alt(chosen),
        column_config={"Configuration": st.column_config.TextColumn(pinned=True, width="medium")},
    )  # fmt: skip


def others(found: search.Tuning, evidence: Evidence) -> None:
    st.subheader("Other searched parameters")
    arms = search.others_of(found)
    if not arms:
        st.text("Nothing but the learning rate was varied. The key search of an arm names further parameters.")
        return
    shared.forget_unknown("search_arm", arms)
    arm = st.selectbox("Configuration", arms, key="search_arm", bind="query-params")
    frame = found.params[arm]
    drawn = search_charts.slices(frame, evidence.spec, arm)
    for start in range(0, len(drawn), 2):
        for column, (name, chart) in zip(st.columns(2), drawn[start : start + 2], strict=False):
            column.altair_chart(
                chart, alt=f"Validation loss of {arm} against its {name.lower()}, the best trial as a diamond"
            )
    st.caption(f"{len(frame)} completed trials, one seed each. The diamond is the best of them.")
    if len(drawn) >= search_rates.LEAST_VARYING:
        st.altair_chart(
            search_charts.parallel(frame, evidence.spec, arm),
            alt=f"Parameters of the tuning trials of {arm} beside their loss; the best trial is the thick line",
        )
        few = f"The best {search_charts.LINES} of {len(frame)} trials" if len(frame) > search_charts.LINES else "Trials"
        st.caption(f"{few} as lines over their parameters; the thick one is the best.")
    st.markdown("**Importance**")
    table = search_rates.importance(frame)
    if table is None:
        st.text(search_rates.missing(frame))
        return
    st.altair_chart(
        search_charts.importance_chart(table),
        alt=f"{table['Parameter'][0]} explains most of the loss of {arm}: {percent(table['Share'][0])}",
    )
    st.caption(
        f"Over {len(frame)} completed trials of {arm}: the share of the variation of the loss's ranks that a parameter "
        "explains by itself, over groups of its values (correlation ratio with the correction of Kelley 1935, PNAS 21, "
        "554). What two parameters do together is not in it, and with few trials it is rough."
    )


view = shared.current()
found = read(str(view.store.folder), view.version)
banner = search.banner(view.evidence, found)

st.header("Was the search fair, and is it finished?")
drawing.banner(banner)
if search.left(found):
    st.code(reproduce.study(view.store), language=None, wrap_lines=True)

st.subheader("Budget of each configuration")
st.dataframe(
    search.ledger(found), hide_index=True, alt=f"Budget ledger: {banner.sentence}",
    column_config={"Configuration": st.column_config.TextColumn(pinned=True, width="medium")},
)  # fmt: skip
st.caption(
    "Every run of the trial log is counted once, at its latest attempt. A run without room for its micro-batch goes on "
    "at a smaller one: each try is a run of the log, all of them together one trial of the budget."
)

st.subheader("Progress of the whole study")
if found.progress:
    st.dataframe(
        search.progress_table(found), hide_index=True, alt="Runs done of those planned, by phase of the study",
        column_config={"Share done": st.column_config.ProgressColumn(format="%.0f %%", min_value=0, max_value=100)},
    )  # fmt: skip
else:
    st.text("What was planned is not known: another program made these runs.")

if len(found.tried):
    charts(found)
    others(found, view.evidence)
else:
    st.subheader("History and learning rates")
    st.text("There is no tuning trial to draw.")
