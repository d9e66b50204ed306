"""What all pages share: which study, under which limits, read once and kept until results are added."""

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import streamlit as st

from harness.decision import Decision, make
from harness.errors import HarnessError
from harness.recommend import Limits
from harness.store import Store, StudyStore
from harness.summary import Evidence, Summary, gather, metrics, primary_metric, summarise
from harness.units import GIB

REFRESH = "5s"
"""How often a page looks whether results were added."""

KEPT = 12
"""Studies and metrics that are kept in memory."""


@dataclass(frozen=True)
class View:
    """A study under the user's limits, as every page shows it."""

    store: StudyStore
    version: str
    evidence: Evidence
    summary: Summary
    decision: Decision
    limits: Limits


def root() -> Path:
    """The store that is shown: `HARNESS_STORE`, which `harness dashboard` sets."""
    return Path(os.environ.get("HARNESS_STORE", "results"))


def controls() -> None:
    """The side bar: study and limits, each bound to the address of the page.

    Raises:
        HarnessError: the study cannot be read.
    """
    names = Store(root()).studies()
    with st.sidebar:
        forget_unknown("study", names)
        st.selectbox("Study", names, index=names.index(_latest(names)), key="study", bind="query-params")
        view_of = opened(str(st.session_state["study"]))
        spec = view_of.spec()
        st.subheader("Limits", help="A configuration beyond one of them is no choice. Empty: no limit.")
        _number("vram", "GPU memory (GiB)", "A run's peak with 5 % to spare must fit.")
        _number("hours", "Hours per run", "Upper prediction bound of one run.")
        _number("money", f"Money per run ({spec.prices.currency})", "Failed runs priced in. Needs a price per hour.")
        _number("rate", f"Price per hour ({spec.prices.currency})", "Of the device that runs.", spec.prices.per_hour)
        st.subheader("What counts")
        records = _evidence(str(view_of.folder), view_of.version(), None).records
        own = primary_metric(spec, records)
        known = list(dict.fromkeys([own, *metrics(records)]))
        forget_unknown("metric", known)
        st.selectbox("Metric", known, key="metric", bind="query-params")  # a format would stand in the address
        declared = spec.objective.margin if st.session_state["metric"] == own else 0.0
        _number("margin", "Margin", "Differences up to this do not matter, in units of the metric.", declared)
        _number("quality", "Least quality", "A configuration must be shown to reach it, in units of the metric.")


def current() -> View:
    """What the controls ask for, read anew only where results were added.

    Raises:
        HarnessError: the study cannot be read.
    """
    state = st.session_state
    store = opened(str(state["study"]))
    spec = store.spec()
    seen = store.version()
    evidence = _evidence(str(store.folder), seen, None)
    metric = state.get("metric")
    if metric and metric != evidence.metric:
        evidence = _evidence(str(store.folder), seen, metric)
    summary = _summary(str(store.folder), seen, evidence.metric if evidence.chosen else None)
    limits = Limits(
        memory_bytes=int(state["vram"] * GIB) if state.get("vram") else None,
        hours=state.get("hours") or None,
        money=state.get("money") or None,
        quality=state.get("quality"),
        margin=None if state.get("margin") in {None, evidence.margin} else state["margin"],
        metric=evidence.metric if evidence.chosen else None,
        per_hour=None if state.get("rate") in {None, spec.prices.per_hour} else state["rate"],
    )
    decision = _decision(str(store.folder), seen, limits)
    return View(store, seen, evidence, summary, decision, limits)


def opened(study: str) -> StudyStore:
    """A study of the store. What cannot be read of it is left out and named, see `unreadable`."""
    return _at(str(root() / study))


def unreadable(view: View) -> list[str]:
    """The files that were left out, and why."""
    return [f"{file.path.name}: {file.reason}" for file in view.store.unreadable()]


def asked(view: View) -> dict[str, str]:
    """Study and limits as they stand in an address, every value spelled out: what a link carries along."""
    limits = view.limits
    values = {
        "study": view.store.folder.name,
        "vram": None if limits.memory_bytes is None else f"{limits.memory_bytes / GIB:g}",
        "hours": limits.hours,
        "money": limits.money,
        "rate": limits.per_hour,
        "metric": limits.metric,
        "margin": limits.margin,
        "quality": limits.quality,
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def link(view: View) -> str:
    """The address of this very view."""
    base = str(st.context.url or "").partition("?")[0]
    return f"{base}?{urlencode(asked(view))}"


def page(view: View, name: str) -> str:
    """The address of another page on this study under these limits, relative to this one."""
    return f"{name}?{urlencode(asked(view))}"


def failed(error: HarnessError) -> None:
    """An error as every page shows it: what is wrong, and what to run."""
    st.error(plain(error.message), icon=":material/error:")
    if error.remedy:
        st.code(error.remedy, language=None, wrap_lines=True)


def warm() -> None:
    """Read the study that the first page shows, so that it does not have to wait; a mistake is the page's to tell."""
    from harness import charts  # noqa: F401  # a second of imports

    names = Store(root()).studies()
    if names:
        with contextlib.suppress(HarnessError):
            store = opened(_latest(names))
            _decision(str(store.folder), store.version(), Limits())


def own(folder: str, version: str) -> tuple[Evidence, list[str]]:
    """What was gathered on the study's own metric, with the caveats of its summary."""
    return _evidence(folder, version, None), _summary(folder, version, None).caveats


def plain(text: str) -> str:
    """Text for a Markdown element, shown as it is."""
    for sign in "\\`*_[]$~<>#:":
        text = text.replace(sign, f"\\{sign}")
    return text


def forget_unknown(key: str, known: Collection[object]) -> None:
    """A choice that another study had is none of this one; of several choices those that are left are kept."""
    chosen = st.session_state.get(key)
    if isinstance(chosen, list):
        if left := [c for c in chosen if c not in known]:
            st.session_state[key] = [c for c in chosen if c not in left]
    elif chosen is not None and chosen not in known:
        del st.session_state[key]


@st.cache_resource(max_entries=KEPT, show_spinner=False)
def _at(folder: str) -> StudyStore:
    return StudyStore(Path(folder), lenient=True)


@st.cache_resource(max_entries=KEPT, show_spinner="Reading results")
def _evidence(folder: str, version: str, metric: str | None) -> Evidence:
    return gather(_at(folder), metric)


@st.cache_resource(max_entries=KEPT, show_spinner=False)
def _summary(folder: str, version: str, metric: str | None) -> Summary:
    return summarise(_at(folder), _evidence(folder, version, metric))


@st.cache_resource(max_entries=10 * KEPT, show_spinner=False)
def _decision(folder: str, version: str, limits: Limits) -> Decision:
    evidence, summary = _evidence(folder, version, limits.metric), _summary(folder, version, limits.metric)
    return make(_at(folder), evidence, summary, limits)


def _latest(names: list[str]) -> str:
    """The study that results were last added to."""

    def changed(name: str) -> float:
        trials = root() / name / "trials"
        return trials.stat().st_mtime if trials.is_dir() else 0.0

    return max(names, key=changed)


def _number(key: str, label: str, words: str, value: float | None = None) -> None:
    st.number_input(label, min_value=0.0, value=value, key=key, bind="query-params", help=words, format="%g", step=None)
