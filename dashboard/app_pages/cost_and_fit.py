"""What runs need and cost, and what fits which card."""

import pandas as pd
import streamlit as st

from dashboard import shared
from dashboard.views import cost_and_fit, cost_cards, cost_forecasts, cost_memory, cost_spent
from harness import budget, reproduce
from harness.errors import HarnessError
from harness.forecast import processors
from harness.scoring import ForecastScore, score
from harness.units import GIB

view = shared.current()
evidence, decision, limit = view.evidence, view.decision, view.decision.limits.memory_bytes
folder = str(view.store.folder)


@st.cache_resource(max_entries=shared.KEPT, show_spinner="Forecasting on every card")
def holdings(folder: str, version: str, limit: int | None) -> list[cost_cards.Holding]:
    read = shared.own_results(folder, version)[0]
    return cost_cards.holdings(read.spec, read.records, cost_cards.cards_of(limit))


@st.cache_resource(max_entries=4 * shared.KEPT, show_spinner="Planning")
def planned(folder: str, version: str, card: str) -> budget.Plan | HarnessError:
    read = shared.own_results(folder, version)[0]
    try:
        return budget.plan(read.spec, processors.find(card), read.records)
    except HarnessError as error:
        return error


@st.cache_resource(max_entries=shared.KEPT, show_spinner=False)
def scored(folder: str, version: str) -> ForecastScore:
    return score(shared.own_results(folder, version)[0].records)


def memory(some: list[cost_memory.Need]) -> None:
    st.subheader("Memory of a training step")
    if not some:
        st.text("No run has measured its memory yet, and none carries a forecast.")
        go_on()
        return
    arms = len({n.arm for n in some})
    few = arms > cost_memory.MANY and not st.toggle(f"Show all {arms}", key="cost_all", bind="query-params")
    drawn = cost_memory.largest(some, cost_memory.MANY if few else None)
    chart = cost_memory.memory_chart(drawn, limit)
    if chart is not None:
        st.altair_chart(chart, alt=cost_memory.memory_alt(drawn))
    st.caption(shared.plain(cost_memory.memory_reading(some, limit)))
    if evidence.spec.origin and evidence.spec.origin.note:
        st.caption(shared.plain(f"Made by {evidence.spec.origin.tool}: {evidence.spec.origin.note}."))
    with st.expander("Figures by component"):
        st.dataframe(cost_memory.memory_table(some), hide_index=True, alt=cost_memory.memory_alt(some))


def go_on() -> None:
    if decision.next_command:
        st.text("This goes on with the study:")
        st.code(decision.next_command, language=None, wrap_lines=True)


def cards() -> dict[str, float | None]:
    """Draws them; returns the price of an hour on each, as edited."""
    st.subheader("What fits which card")
    held = holdings(folder, view.version, limit)
    known = cost_cards.cards_of(limit)
    rates = edited_rates()
    st.dataframe(
        cost_cards.arms_table(held, known, rates, limit), hide_index=True,
        alt="For every configuration the smallest and the cheapest card that hold it, as forecast",
        column_config={"Configuration": st.column_config.TextColumn(pinned=True)},
    )  # fmt: skip
    missing = cost_cards.unforecast(held)
    if missing:
        st.caption(shared.plain(missing))
    picked = held
    left, right = st.columns(2)
    shared.forget_unknown("cost_where", list(cost_cards.WHERE))
    where = left.segmented_control(
        "Cards", cost_cards.WHERE, default=cost_cards.WHERE[0], required=True, key="cost_where", bind="query-params"
    )
    if len(held) > cost_cards.COLUMNS:
        names = [h.arm for h in held]
        if any(name not in names for name in st.session_state.get("cost_arms", [])):
            del st.session_state["cost_arms"]
        some = right.multiselect("Configurations", names, default=names[: cost_cards.COLUMNS], key="cost_arms")
        picked = [h for h in held if h.arm in some]
    table = cost_cards.cards_table(picked, known, rates, str(where))
    if table.empty:
        st.text("No card of the table does.")
    else:
        st.dataframe(
            table, hide_index=True, alt="Cards against configurations: fits, likely, uncertain or no, as forecast",
            column_config={"Card": st.column_config.TextColumn(pinned=True)},
        )  # fmt: skip
    st.caption(
        "Every verdict is a forecast unless its column says measured. Fits: 5 % of the card stay free at the upper "
        "bound of the 90 % interval; likely: at its middle; uncertain: it may go either way; no: the lower bound is "
        "beyond the card. Sizes are of the whole process, training and evaluation, at the study's own sequences per "
        "pass, or at the first half of it that may fit."
    )
    return rates


def edited_rates() -> dict[str, float | None]:
    with st.expander("Rates per card, to be edited"):
        edited = st.data_editor(
            rates_shown(), hide_index=True, key="cost_rates", disabled=["Card", "Memory (GiB)"], num_rows="fixed",
            column_config={
                "Memory (GiB)": st.column_config.NumberColumn(format="%.1f"),
                "Price per hour ($)": st.column_config.NumberColumn(min_value=0.0, format="%.2f"),
            },
        )  # fmt: skip
        st.caption(
            "What renting one costs in US dollars, early 2026, for orientation. What is typed here holds for this page "
            "until it is closed."
        )
    return cost_cards.rates_of(edited)


@st.cache_resource(show_spinner=False)
def rates_shown() -> pd.DataFrame:
    return cost_cards.rates_table()


def detail(rates: dict[str, float | None]) -> None:
    st.subheader("This study on one card")
    names = [c.name for c in cost_cards.cards_of(None)]
    sizes = [] if limit is None or not cost_cards.is_card(limit) else [f"{limit / GIB:g} GB"]
    shared.forget_unknown("cost_card", [*sizes, *names])
    card = st.selectbox(
        "Card", [*sizes, *names], index=None, placeholder="Choose a card", key="cost_card", bind="query-params"
    )
    if card is None:
        st.caption("Hours and money of every configuration on a card of your choice, as forecast.")
        return
    plan = planned(folder, view.version, card)
    if isinstance(plan, HarnessError):
        st.text(f"Not forecast here: {plan.message}")
        return
    rate = rates.get(card)
    st.text(cost_cards.plan_said(plan, rate))
    st.dataframe(cost_cards.plan_table(plan, rate), hide_index=True, alt=cost_cards.plan_said(plan, rate))
    for doubt in plan.doubts:
        st.caption(shared.plain(f"Note: {doubt}"))
    st.code(reproduce.plan(view.store, card), language=None, wrap_lines=True)


def spent(frame: pd.DataFrame) -> None:
    st.subheader("What this study took")
    few = None if st.session_state.get("cost_all") else cost_memory.MANY
    chart = cost_spent.spent_chart(frame, few)
    if chart is None:
        st.text("Nothing has run yet.")
        if needs:  # else it was said above
            go_on()
        return
    said = cost_spent.spent_said(evidence, frame, decision)
    st.text(said)
    st.altair_chart(chart, alt=said)
    st.dataframe(cost_spent.spent_table(frame, decision), hide_index=True, alt=said)


def calibration() -> None:
    st.subheader("How good the forecasts were")
    found = scored(folder, view.version)
    pairs = [(of, f) for of in cost_forecasts.KINDS if len(f := cost_forecasts.calibration_frame(evidence.records, of))]
    if not pairs:
        why = ": they are of an older version, or were made elsewhere" if evidence.runs else ""
        st.text(f"No run has both a forecast and a measurement{why}.")
        return
    for column, (of, frame) in zip(st.columns(2), pairs, strict=False):
        chart = cost_forecasts.calibration_chart(frame, of)
        if chart is not None:
            column.altair_chart(chart, alt=cost_forecasts.coverage(frame, of))
        column.caption(shared.plain(f"{of.capitalize()}. {cost_forecasts.coverage(frame, of)}"))
    st.dataframe(cost_forecasts.score_table(found), hide_index=True, alt="Error and coverage of the forecasts by kind")
    st.caption(shared.plain(f"{cost_forecasts.score_said(found)} Errors are forecast over measured, minus one."))


st.header("What it costs, and what fits")
needs = cost_memory.needs(evidence)
frame = cost_spent.spent_frame(evidence)
figures = cost_and_fit.figures(evidence, needs, frame, decision)
for column, (name, value, about, words) in zip(st.columns(4), figures, strict=False):
    column.metric(
        name, value, None, delta_description=about, help=words, border=True, height="stretch", delta_arrow="off"
    )
memory(needs)
detail(cards())
spent(frame)
calibration()
