"""What all pages share: which study, under which limits, read once and kept until results are added."""

import contextlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import streamlit as st

from harness.decision import Decision, limits_written, make
from harness.errors import HarnessError
from harness.recommend import Limits
from harness.store import Store, StudyStore
from harness.summary import Evidence, Summary, gather, metrics, primary_metric, summarise
from harness.units import GIB, is_share

REFRESH = "5s"
"""How often a page looks whether results were added."""

KEPT = 12
"""Studies and metrics that are kept in memory, each at its newest version."""

KEYS = {"per-hour": "rate"}
"""What a limit is called in the address, where that is not the name of its option."""


@dataclass(frozen=True)
class View:
    """A study under the user's limits, as every page shows it."""

    store: StudyStore
    version: str
    evidence: Evidence
    summary: Summary
    decision: Decision


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
        store = opened(choice("Study", names, _latest(names), "study"))
        spec = store.spec()
        records = _evidence(str(store.folder), store.version(), None).records
        own_metric = primary_metric(spec, records)
        known = list(dict.fromkeys([own_metric, *metrics(records)]))
        _forget_defaults(_Defaults(store.folder.name, own_metric, spec.prices.currency))
        st.subheader("Limits", help="A configuration beyond one of them is no choice. Empty: no limit.")
        _number("vram", "GPU memory (GiB)", "A run's peak with 5 % to spare must fit.", step=1.0)
        _number("hours", "Hours per run", "Upper prediction bound of one run.", step=0.5)
        _number(
            "money",
            f"Money per run ({spec.prices.currency})",
            "Failed runs priced in. Needs a price per hour.",
            step=1.0,
        )
        _number(
            "rate",
            f"Price per hour ({spec.prices.currency})",
            "Of the device that runs.",
            spec.prices.per_hour,
            step=0.1,
        )
        st.subheader("What counts")
        metric = choice("Metric", known, own_metric, "metric")
        _forget_units(metric)
        declared = spec.objective.margin if metric == own_metric else 0.0
        unit = "a share: 0.02 is 2 points" if is_share(metric) else "in units of the metric"
        _number("margin", "Margin", f"Differences up to this do not matter, {unit}.", declared, step=0.01)
        _number("quality", "Least quality", f"A configuration must be shown to reach it, {unit}.", step=0.01)


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
        memory_bytes=None if state.get("vram") is None else int(state["vram"] * GIB),
        hours=state.get("hours"),
        money=state.get("money"),
        quality=state.get("quality"),
        margin=None if state.get("margin") == evidence.margin else state.get("margin"),
        metric=evidence.metric if evidence.chosen else None,
        per_hour=None if state.get("rate") == spec.prices.per_hour else state.get("rate"),
    )
    decision = _decision(str(store.folder), seen, limits)
    return View(store, seen, evidence, summary, decision)


def choice(label: str, options: Sequence[str], first: str, key: str) -> str:
    """A selection that stays in the address: what comes first, the latest study say, may be another one tomorrow.

    What the address or another study asked for and is not there is named, not passed over.
    """
    state = st.session_state
    asked = state[key] if key in state else st.query_params.get(key)
    if asked not in options:
        state[key] = first
    st.selectbox(label, options, index=None, key=key, bind="query-params")
    if asked is not None and asked not in options:
        st.caption(plain(f"There is no {asked!r} here; this is {first}."))
    return str(state[key])


def opened(study: str) -> StudyStore:
    """A study of the store. What cannot be read of it is left out and named, see `unreadable`."""
    return _at(str(root() / study))


def unreadable(view: View) -> list[str]:
    """The files that were left out, and why."""
    return [f"{file.path.name}: {file.reason}" for file in view.store.unreadable()]


def asked(view: View) -> dict[str, str]:
    """Study and limits as they stand in an address, every value spelled out: what a link carries along."""
    written = limits_written(view.decision.limits)
    return {"study": view.store.folder.name, **{KEYS.get(name, name): text for name, text in written.items()}}


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


def own_results(folder: str, version: str) -> tuple[Evidence, Summary]:
    """What a study shows on its own metric, whatever the side bar says."""
    return _evidence(folder, version, None), _summary(folder, version, None)


def plain(text: str) -> str:
    """Text for a Markdown element, shown as it is."""
    for sign in "\\`*_[]$~<>#:":
        text = text.replace(sign, f"\\{sign}")
    return text


def forget_unknown(key: str, known: Collection[object]) -> None:
    """A choice that another study had is none of this one; of several choices those that are left are kept."""
    chosen = st.session_state.get(key)
    if isinstance(chosen, list):
        kept = [c for c in chosen if c in known]
        if kept != chosen:
            st.session_state[key] = kept
    elif chosen is not None and chosen not in known:
        del st.session_state[key]


@st.cache_resource(max_entries=KEPT, show_spinner=False)
def _at(folder: str) -> StudyStore:
    return StudyStore(Path(folder), lenient=True)


@st.cache_resource(max_entries=1, show_spinner=False)
def _newest() -> dict[tuple[str, str | None], str]:
    """The version at which a study was last read on a metric."""
    return {}


def _evidence(folder: str, version: str, metric: str | None) -> Evidence:
    """What was gathered at a version. An older one goes: while a study runs, each of its runs makes a new one."""
    older = _newest().get((folder, metric), version)
    _newest()[folder, metric] = version
    if older != version:
        _gathered.clear(folder, older, metric)
        _summary.clear(folder, older, metric)
    return _gathered(folder, version, metric)


@st.cache_resource(max_entries=KEPT, show_spinner="Reading results")
def _gathered(folder: str, version: str, metric: str | None) -> Evidence:
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


@dataclass(frozen=True)
class _Defaults:
    """What a study brings to the side bar, and the next one does not share."""

    study: str
    metric: str
    currency: str


def _forget_defaults(now: _Defaults) -> None:
    """What was said of the study shown before is not said of this one: its own metric, and what an hour costs."""
    state = st.session_state
    before = state.get("defaults", now)
    state["defaults"] = now
    if before.study == now.study:
        return
    if state.get("metric") == before.metric:
        state["metric"] = now.metric
    for key in ("rate", *(["money"] if before.currency != now.currency else [])):
        state[key] = None


def _forget_units(metric: str) -> None:
    """Margin and least quality are in units of the metric, and mean nothing in those of another one."""
    state = st.session_state
    if state.get("judged_by", metric) != metric:
        state["margin"] = state["quality"] = None
    state["judged_by"] = metric


def _number(key: str, label: str, words: str, own: float | None = None, *, step: float) -> None:
    """A limit; the study's own is written faintly and counts while nothing is typed.

    It is no value of the input: that one would stay when the next study is shown.
    """
    st.number_input(
        label, min_value=0.0, value=None, key=key, bind="query-params", help=words, format="%g", step=step,
        placeholder=None if own is None else f"{own:g}",
    )  # fmt: skip
