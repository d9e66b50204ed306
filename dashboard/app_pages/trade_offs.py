"""Quality against memory, time, money or energy."""

import streamlit as st

from dashboard import shared
from dashboard.views import trade_offs as views
from harness import charts
from harness.trade_offs import along, axes
from harness.wording import trade_off_findings, trade_off_reading

view = shared.current()
decision = view.decision
known = axes(decision)

st.header("What more quality costs")
if not known:
    st.text(views.unscored(decision))
    if views.no_room(decision):
        st.page_link("app_pages/cost_and_fit.py", label="Cost and fit", icon=":material/developer_board:")
    elif decision.next_command:
        st.text("This goes on with the study:")
        st.code(decision.next_command, language=None, wrap_lines=True)
    st.stop()

names = {views.AXES[axis]: axis for axis in known}
shared.forget_unknown("trade_offs_axis", list(names))
name = st.segmented_control(
    "Against", list(names), default=views.AXES[known[0]], key="trade_offs_axis", bind="query-params", required=True
)
axis = names.get(str(name), known[0])
if missing := views.left_out(known):
    st.caption(shared.plain(missing))

found = along(axis, view.evidence, view.summary, decision)
chart = charts.trade_off(found, decision, height=460, pickable=True)
alt = charts.trade_off_alt(found, decision)
of_view = f"{decision.study}_{axis}"
event = st.altair_chart(chart, alt=alt, on_select="rerun", selection_mode=charts.PICKED, key=f"trade_offs_{of_view}")
st.text(" ".join(trade_off_findings(found)))
st.caption(shared.plain(" ".join(trade_off_reading(found, decision))))

st.subheader("All configurations, the cheapest first")
table = views.table(found, decision)
chosen = st.dataframe(
    table, hide_index=True, alt=f"Configurations of {decision.study} by {views.COLUMNS[axis].lower()}",
    on_select="rerun", selection_mode="multi-row", key=f"trade_offs_table_{of_view}",
    column_config={"Configuration": st.column_config.TextColumn(pinned=True, width="medium")},
)  # fmt: skip
arms = views.picked(chosen.selection.rows, table, event.selection)
two = len(arms) == 2 and all(a in {p.arm for p in found.points} | set(found.unplaced) for a in arms)
if two:
    words = shared.plain(f"Compare {arms[0]} and {arms[1]}")
    st.page_link(
        "app_pages/compare.py", label=words, icon=":material/compare_arrows:",
        query_params={"a": arms[0], "b": arms[1]},
    )  # fmt: skip
else:
    st.caption(shared.plain(views.picking(arms, found)))
