"""Two configurations against each other."""

import pandas as pd
import streamlit as st

from dashboard import drawing, shared
from dashboard.views import compare
from harness import metrics, pairs, questions, reproduce
from harness.pairs import Pair


@st.cache_resource(max_entries=50, show_spinner="Comparing")
def pair_of(folder: str, version: str, metric: str, margin: float | None, a: str, b: str, _view: shared.View) -> Pair:
    return pairs.make(_view.store, _view.evidence, _view.summary, a, b, margin)


@st.cache_resource(max_entries=20, show_spinner="Reading answers")
def flipped_of(folder: str, version: str, metric: str, a: str, b: str, _view: shared.View) -> pd.DataFrame:
    asked = questions.texts(_view.evidence.spec.controls, metric.partition("/")[0])
    return compare.flipped(pairs.answers(_view.store, _view.evidence, metric, a, b), asked)


def swap() -> None:
    st.session_state["a"], st.session_state["b"] = st.session_state["b"], st.session_state["a"]


def pick() -> tuple[str, str]:
    """The two that are compared, each in the address."""
    known = compare.arms(view.evidence)
    left, right, turn = st.columns([4, 4, 2], vertical_alignment="bottom")
    for column, key, first in zip((left, right), ("a", "b"), compare.defaults(view.decision, known), strict=True):
        with column:
            shared.choice(key.upper(), known, first, key)
    turn.button(
        "Swap", icon=":material/swap_horiz:", on_click=swap, width="stretch", help="A becomes B and B becomes A."
    )
    return str(st.session_state["a"]), str(st.session_state["b"])


def answer(pair: Pair) -> None:
    drawing.banner(compare.answer(pair))
    if pair.metrics and (said := compare.basis(pair)):
        st.caption(shared.plain(said))


def differences(pair: Pair) -> None:
    st.subheader("Differences")
    panels = compare.forest(pair)
    for panel in panels:
        st.text(panel.title)
        st.altair_chart(panel.chart, alt=panel.alt)
    if panels:
        st.caption(shared.plain(compare.reading(pair)))
    else:
        st.text(f"No difference has an interval: {pair.metrics[0].reason}")
    st.dataframe(
        compare.metrics_table(pair, view.evidence), hide_index=True,
        alt=f"Every metric of {pair.a} and {pair.b} with the difference and its interval",
    )  # fmt: skip
    if pair.metrics[0].per_seed:
        link = st.column_config.LinkColumn(display_text=r"run=([^&]+)$", help="Opens the run in a tab of its own.")
        st.dataframe(
            compare.seeds_table(pair, view.evidence, shared.page(view, "runs")), hide_index=True,
            alt=f"The difference of each seed, with links to the runs of {pair.a} and {pair.b}",
            column_config={f"Run of {arm}": link for arm in (pair.a, pair.b)},
        )  # fmt: skip


def flips(pair: Pair) -> None:
    st.subheader("What each got right")
    known = compare.flipping(pair)
    if not known:
        st.text(compare.no_flips(pair, view.evidence))
        return
    shared.forget_unknown("compare_task", known)
    if len(known) > 1:
        st.selectbox("Task", known, key="compare_task", bind="query-params", format_func=metrics.plain)
    metric = str(st.session_state.get("compare_task", known[0]))
    said = compare.flips_said(pair, metric)
    st.altair_chart(compare.flips_chart(pair, metric), alt=said)
    st.text(said)
    examples(pair, metric)


def examples(pair: Pair, metric: str) -> None:
    st.subheader("Answers that flipped")
    whole = flipped_of(str(view.store.folder), view.version, metric, pair.a, pair.b, view)
    sides = {pair.a: "a", pair.b: "b"}
    shared.forget_unknown("compare_side", list(sides))
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    left.segmented_control(
        "Show", list(sides), format_func=lambda arm: f"only {arm} right", key="compare_side", bind="query-params",
        help="None of them chosen: both.",
    )  # fmt: skip
    right.text_input(
        "Search", key="compare_search", bind="query-params", type="search", help="In questions and answers."
    )
    side = sides.get(st.session_state["compare_side"])
    found = compare.searched(whole, side, st.session_state["compare_search"] or "")
    if found.empty:
        st.text(
            "No answer flipped." if whole.empty else f"None of the {len(whole):,} answers that flipped is like that."
        )
        return
    items = compare.items(found)
    pages = -(-len(items) // compare.PAGE)
    number = min(int(st.session_state.get("compare_page", 1)), pages)
    page = items.iloc[(number - 1) * compare.PAGE : number * compare.PAGE].reset_index(drop=True)
    chosen = st.dataframe(
        compare.examples_table(page, pair), hide_index=True, on_select="rerun", selection_mode="single-row",
        key=f"compare_examples_{metric}_{number}", alt=f"Answers of which {pair.a}'s or {pair.b}'s alone was right",
    )  # fmt: skip
    if pages > 1:
        st.pagination(pages, key="compare_page")
    st.caption(shared.plain(compare.counted(found, items, whole)))
    rows = chosen["selection"]["rows"]
    if rows:
        whole_text(compare.of_item(found, page.iloc[rows[0]]), pair)


def whole_text(answers: pd.DataFrame, pair: Pair) -> None:
    """One item with what both answered in each seed, whole."""
    first = answers.iloc[0]
    for name, text in (("Question", first["question"]), ("Right answer", first["target"])):
        st.caption(name)
        st.code(compare.text(text), language=None, wrap_lines=True)
    for row in answers.to_dict("records"):
        for column, arm, key in zip(st.columns(2), (pair.a, pair.b), ("answer_a", "answer_b"), strict=True):
            column.caption(shared.plain(f"{arm} answered, seed {row['seed']}"))
            column.code(compare.text(row[key]), language=None, wrap_lines=True)


def settings(pair: Pair) -> None:
    st.subheader("Settings")
    everything = st.toggle("Show all settings", key="compare_all", bind="query-params")
    table = compare.settings_table(pair, view.evidence, view.summary, everything=everything)
    if table.empty:
        st.text("They differ in nothing.")
    else:
        st.dataframe(table, hide_index=True, alt=f"Settings in which {pair.a} and {pair.b} differ")
    if not everything:
        st.caption(shared.plain(compare.shared_settings(view.evidence)))


def cost(pair: Pair) -> None:
    st.subheader("What they took")
    st.dataframe(
        compare.costs(pair, view.summary, view.decision), hide_index=True,
        alt=f"Memory, time, energy and money of {pair.a} and {pair.b} side by side",
    )  # fmt: skip
    for column, arm in zip(st.columns(2), (pair.a, pair.b), strict=True):
        column.page_link(
            "app_pages/runs.py", label=shared.plain(f"Runs of {arm}"), icon=":material/list:",
            query_params={"runs_arm": arm},
        )  # fmt: skip


view = shared.current()
st.header("Compare two configurations")
if len(compare.arms(view.evidence)) < 2:
    st.text("This study has one configuration only: there is nothing to compare it with.")
    st.stop()
left_arm, right_arm = pick()
if left_arm == right_arm:
    st.text(f"Both are {left_arm}: choose two different ones.")
    st.stop()
found_pair = pair_of(
    str(view.store.folder), view.version, view.evidence.metric, view.decision.limits.margin, left_arm, right_arm, view
)
answer(found_pair)
lacking = compare.missing(found_pair, view.evidence)
if lacking:
    st.text(lacking)
    if not view.evidence.elsewhere:
        st.code(reproduce.study(view.store), language=None, wrap_lines=True)
else:
    differences(found_pair)
    flips(found_pair)
settings(found_pair)
cost(found_pair)
