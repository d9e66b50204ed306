"""Down to which bit-width the model still holds."""

from pathlib import Path

import streamlit as st

from dashboard import drawing, shared
from dashboard.views import bits as shown
from dashboard.views import bits_charts
from harness import bits, reproduce
from harness.bits import Bits, Question

view = shared.current()


@st.cache_resource(max_entries=shared.KEPT, show_spinner="Comparing bit-widths")
def answer(folder: str, version: str) -> Bits:
    """On the study's own metric and margin, as `harness bits` says it."""
    evidence, summary = shared.own_results(folder, version)
    return bits.answer(shared.opened(Path(folder).name), evidence, summary.caveats)


def question_of(found: Bits) -> Question:
    """The one that was picked, in full below."""
    titles = [q.title for q in found.questions]
    if len(titles) == 1:
        return found.questions[0]
    shared.forget_unknown("bits_question", titles)
    st.selectbox("Question", titles, key="bits_question", bind="query-params")
    return found.questions[titles.index(str(st.session_state["bits_question"]))]


def quality(question: Question) -> None:
    names = shown.measures(question)
    measure = names[0]
    if len(names) > 1:
        shared.forget_unknown("bits_measure", names)
        st.segmented_control(
            "Measure", names, key="bits_measure", default=names[0], required=True, bind="query-params",
            format_func=shown.measure_name,
        )  # fmt: skip
        measure = str(st.session_state["bits_measure"])
    finding = next((f for f in question.findings if f.measure.name == measure), None)
    margin = shown.margin_of(finding.measure) if finding else 0.0
    lowest = finding.lowest if finding else None
    named = shown.title(measure, question)
    left, right = st.columns(2)
    some = shown.points(question, measure)
    chart = bits_charts.quality_chart(some, named, question.reference, margin, lowest)
    if chart is None:
        st.text("No bit-width has a score yet.")
        return
    left.altair_chart(chart, alt=shown.chart_alt(question, measure, some))
    apart = shown.differences(question, measure)
    chart = bits_charts.difference_chart(apart, shown.difference_title(measure, question), margin, lowest)
    if chart is None:
        right.text(f"No difference is judged on {shown.measure_name(measure)}.")
    else:
        right.altair_chart(chart, alt=f"Differences from {question.reference}. {finding.sentence if finding else ''}")
    st.caption(shared.plain(shown.reading(question, margin)))


def costs(question: Question) -> None:
    st.subheader("What each takes")
    drawn = [
        (bits_charts.sizes_chart(question), "Memory of the weights"),
        (bits_charts.peaks_chart(question), "Peak of a training step"),
        (bits_charts.divergence_chart(question), "How far each is from the unquantized model"),
    ]
    charts = [(chart, alt) for chart, alt in drawn if chart is not None]
    for column, (chart, alt) in zip(st.columns(len(charts)) if charts else [], charts, strict=True):
        column.altair_chart(chart, alt=f"{alt}, by bit-width; the figures are in the table below")
    st.dataframe(shown.sizes(question), hide_index=True, alt=f"Memory, disk and divergence: {question.title}")


def speeds(found: Bits) -> None:
    if not found.speeds:
        return
    st.subheader("How fast the base answers")
    known = shown.shapes(found)
    shape = known[0]
    if len(known) > 1:
        names = [shown.shape_name(s) for s in known]
        shared.forget_unknown("bits_shape", names)
        st.segmented_control("Batch", names, key="bits_shape", default=names[0], required=True, bind="query-params")
        shape = known[names.index(str(st.session_state["bits_shape"]))]
    drawn = [
        c
        for c in (bits_charts.speed_chart(found, shape, "decode"), bits_charts.speed_chart(found, shape, "prefill"))
        if c
    ]
    for column, chart in zip(st.columns(len(drawn)), drawn, strict=True):
        column.altair_chart(chart, alt=shown.speed_alt(found, shape))
    st.caption(
        f"Medians over rounds with 90 % intervals; above each how many times as fast as {found.speeds[0].served}, from "
        "rounds that both took part in. Measured on the base, on the machine that ran the study."
    )
    with st.expander("All timings"):
        st.dataframe(
            shown.speeds(found, view.decision.currency), hide_index=True, alt="Timings of every bit-width and batch"
        )


st.header("Which bit-width still holds")
if not bits.asks(view.evidence.spec):
    st.text(shown.nothing_asked(view.evidence))
    st.code(reproduce.preset("tiny-bits", shared.root()), language=None, wrap_lines=True)
    st.subheader("What this study has")
    st.dataframe(
        shown.by_arm(view.evidence, view.summary), hide_index=True,
        alt="Quality and memory of every configuration, with how its base is stored",
    )  # fmt: skip
else:
    answered = answer(str(view.store.folder), view.version)
    st.caption(shared.plain(shown.caption(view.evidence, answered)))
    if len(answered.questions) > 1:
        st.dataframe(shown.answers(answered), hide_index=True, alt="Every question about bit-widths with its answer")
    asked = question_of(answered)
    drawing.banner(shown.answer(asked))
    st.subheader("Quality by bit-width")
    quality(asked)
    st.dataframe(shown.table(asked), hide_index=True, alt=f"Quality by bit-width: {asked.findings[0].sentence}")
    lines = shown.ways(answered, asked.subject) if asked.kind == "served" else []
    for line in lines:
        st.text(line)
    if any(w.runs for w in asked.widths):
        costs(asked)
    speeds(answered)
    st.subheader("What would settle the rest")
    for line in shown.settling(asked, answered.study):
        st.text(line)
    if asked.answer == "open" and view.decision.next_command and not any(w.runs for w in asked.widths):
        st.code(view.decision.next_command, language=None, wrap_lines=True)
    if answered.notes:
        st.subheader("Before you trust it")
        st.markdown("\n".join(f"- {shared.plain(line)}" for line in answered.notes))
