"""Which configuration to use, and is the dear one worth it."""

import streamlit as st

from dashboard import drawing, shared
from dashboard.views import decide
from harness import charts, report
from harness.wording import ranked_reading

view = shared.current()
decision = view.decision

st.header(shared.plain(decision.question or f"What {decision.study} says"))
drawing.banner(*decide.verdict(decision))

figures = decide.figures(decision)
for column, figure in zip(st.columns(len(figures)) if figures else [], figures, strict=True):
    column.metric(
        figure.name, figure.value, figure.delta, delta_color=figure.color, delta_arrow="off",
        delta_description=figure.against, help=figure.help, border=True, height="stretch",
    )  # fmt: skip

st.subheader("All configurations, ranked")
scored = sum(row.quality is not None for row in decision.rows)
few = scored > decide.MANY and not st.toggle(f"Show all {scored}", key="decide_all", bind="query-params")
chart = charts.ranked(decision, decide.MANY if few else None)
if chart is None:
    st.text("No configuration has a score yet.")
else:
    st.altair_chart(chart, alt=charts.ranked_alt(decision))
    st.caption(shared.plain(ranked_reading(decision)))
st.text(decision.told_apart)
st.dataframe(
    decide.table(decision), hide_index=True, alt=f"Every configuration of {decision.study} with its figures",
    column_config={"Configuration": st.column_config.TextColumn(pinned=True)},
)  # fmt: skip

st.subheader("What would settle the rest")
lines = decision.to_settle or [decide.SETTLED]
for line in lines:
    st.text(line)
if decision.next_command:
    st.code(decision.next_command, language=None, wrap_lines=True)

if decision.held_back:
    st.subheader("Before you trust it")
    st.markdown("\n".join(f"- {shared.plain(line)}" for line in decision.held_back))

st.subheader("Take it with you")
with st.container(horizontal=True):
    st.download_button(
        "Report (HTML)", lambda: report.html(view.evidence, view.summary, decision), f"{decision.study}-report.html",
        "text/html", icon=":material/description:", on_click="ignore", help="One file that opens without a network.",
    )  # fmt: skip
    st.download_button(
        "Decision (JSON)", report.decision_json(decision), f"{decision.study}-decision.json",
        "application/json", icon=":material/data_object:", on_click="ignore",
    )  # fmt: skip
    for name, words, content in decide.exported(view.evidence, decision):
        st.download_button(name, content, name, icon=":material/download:", help=words, on_click="ignore")
st.caption("A link to this view, with the limits in it:")
st.code(shared.link(view), language=None, wrap_lines=True)
if decision.chosen and decision.chosen.command:
    st.caption(
        shared.plain(
            f"The run that was recommended, once more ({decision.chosen.arm}, trial {decision.chosen.trial_id}):"
        )
    )
    st.code(decision.chosen.command, language=None, wrap_lines=True)
