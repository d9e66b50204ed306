"""The entry of the dashboard: navigation, the side bar, and the page that was asked for."""

from pathlib import Path

import streamlit as st

from dashboard import shared
from harness import reproduce
from harness.errors import HarnessError
from harness.store import Store
from harness.wording import about
from harness.words import capital

HERE = Path(__file__).resolve().parent

# file, title, icon and help of every page, by section; a bare string here would be drawn by Streamlit
PAGES: dict[str, list[tuple[str, str, str, str]]] = {
    "": [
        ("decide", "Decide", "balance", "Which configuration to use under your limits, and is the dear one worth it.")
    ],
    "Evidence": [
        ("trade_offs", "Trade-offs", "scatter_plot", "Quality against memory, time, money and energy."),
        ("compare", "Compare", "compare_arrows", "Two configurations: differences, flipped examples, settings, cost."),
        ("bits", "Bits", "memory", "Down to which bit-width the model holds."),
        ("cost_and_fit", "Cost and fit", "developer_board", "Memory by component, what fits which card, hours, money."),
    ],
    "Study": [
        ("search", "Search", "tune", "Was the search fair, and is it finished: budgets, history, learning rates."),
        ("runs", "Runs", "list", "Every run with its status, curves, settings, log and how to make it again."),
        ("method", "Method", "fact_check", "What the numbers mean and how they are tested."),
    ],
}


def main() -> None:
    st.set_page_config("harness", page_icon=str(HERE / "favicon.svg"), layout="wide", initial_sidebar_state="auto")
    page = st.navigation(
        {
            section: [
                st.Page(
                    f"app_pages/{name}.py", title=title, icon=f":material/{icon}:", help=words,
                    url_path=name.replace("_", "-"), default=name == "decide",
                )
                for name, title, icon, words in pages
            ]
            for section, pages in PAGES.items()
        },
        position="top",
    )  # fmt: skip
    if not Store(shared.root()).studies():
        _empty()
        return
    try:
        shared.controls()
        _watch(str(st.session_state["study"]))
        view = shared.current()
        st.caption(shared.plain(capital(" · ".join(about(view.evidence, view.decision)))))
        page.run()
        _left_out()
    except HarnessError as error:
        shared.failed(error)


def _left_out() -> None:
    """Files that cannot be read take nothing down, and are named."""
    files = shared.unreadable(shared.current())
    if files:
        with st.expander(f"{len(files)} files of results cannot be read and are left out", icon=":material/warning:"):
            for line in files:
                st.text(line)


@st.fragment(run_every=shared.REFRESH)
def _watch(study: str) -> None:
    """Draw the page again when results were added: a study that runs is shown as it goes."""
    version = shared.opened(study).version()
    seen = st.session_state.setdefault("seen", {})
    if seen.get(study, version) != version:
        seen[study] = version
        st.rerun()
    seen[study] = version


def _empty() -> None:
    st.header("No results yet")
    st.text(f"The store {shared.root()} holds no study. On any machine this makes one in minutes:")
    st.code(reproduce.preset("tiny-methods", shared.root()), language=None, wrap_lines=True)
    st.text("Or take in what others have published, such as the results of PEFT, where PATH is the folder they are in:")
    st.code(reproduce.bring("PEFT", shared.root()), language=None, wrap_lines=True)


if __name__ == "__main__":  # as Streamlit runs it
    main()
