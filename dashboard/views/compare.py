"""Two configurations against each other, as the page of that name shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from dashboard.views.banner import Banner
from dashboard.views.settings import flat, said, value
from harness import metrics, pairs
from harness.charts import Chart
from harness.decision import Decision
from harness.pairs import Metric, Pair
from harness.spec import StudySpec
from harness.summary import ArmRow, Evidence, Summary, over_seeds
from harness.units import amount, duration, energy, percent, size
from harness.words import listed, seeds

VERDICTS = ("better", "worse", "equivalent", "not shown", "not enough data")
VERDICT_SHAPES = ("triangle-up", "triangle-down", "square", "circle", "cross")
BADGES = {
    "better": ("A is better", ":material/trending_up:", "green"),
    "worse": ("A is worse", ":material/trending_down:", "red"),
    "equivalent": ("Equivalent", ":material/balance:", "green"),
    "not shown": ("Not shown", ":material/help:", "orange"),
    "not enough data": ("Not enough data", ":material/hourglass_empty:", "gray"),
}
ROW_HEIGHT = 46
"""Pixels of one metric: its interval, and below it a dot for each seed."""
AROUND = 110
"""Pixels that a panel's title, legend and axis take."""
LABELLED = 0.08
"""Smallest share of a bar that has room for its number."""
PAGE = 10
"""Examples on one page."""

UNKNOWN = "Results keep the answers, not the questions; those of this task are not on this machine."


@dataclass(frozen=True)
class Panel:
    """The metrics of one unit and direction, on a scale of their own."""

    title: str
    chart: Chart
    alt: str


# who is compared


def arms(evidence: Evidence) -> list[str]:
    """The configurations of a study, in its order."""
    return list(evidence.spec.arms)


def defaults(decision: Decision, known: Sequence[str]) -> tuple[str, str]:
    """What to compare where nobody said: the recommended configuration with the baseline.

    Where the baseline itself is recommended, the best of the others takes its place.
    """
    baseline = decision.baseline
    chosen = decision.chosen.arm if decision.chosen else baseline
    others = [row.arm for row in decision.rows if row.arm != baseline] or [baseline]
    first = chosen if chosen != baseline else others[0]
    return (first if first in known else known[0]), baseline


# the answer


def answer(pair: Pair) -> Banner:
    label = pair.metrics[0].verdict if pair.metrics else "not enough data"
    words, icon, color = BADGES[label]
    doubt = "Exploratory: decided after the study began, so its error rate is not the promised one."
    return Banner(
        words.replace("A is", f"{pair.a} is"), icon, color, pair.sentence, [doubt] if pair.exploratory else []
    )


def missing(pair: Pair, evidence: Evidence) -> str | None:
    """What has to be there before anything can be compared; None where there is something."""
    if pair.metrics:
        return None
    without = [arm for arm in (pair.a, pair.b) if not any(r.trial.arm == arm for r in evidence.runs)]
    who = listed(without or [pair.a, pair.b])
    return f"{who} {'has' if len(without) == 1 else 'have'} no confirmed run yet that could be judged."


def basis(pair: Pair) -> str:
    """What the verdict rests on, and what comparing means alone would have said."""
    first = pair.metrics[0]
    said = f"Means alone would say: {first.naive}." if first.naive else ""
    if first.difference is None:
        return said
    margin = metrics.margin(pair.margin, first.metric)
    return (
        f"{said} Compared item by item over {first.items:,} items and {seeds(first.seeds)} at a margin of {margin}; "
        "other metrics at no margin."
    ).strip()


# numbers


def bounded(found: Metric) -> str:
    """A difference with its interval, or why there is none."""
    if found.difference is None or found.low is None or found.high is None:
        return f"no interval: {found.reason}" if found.reason else "no interval"
    return metrics.change(found.difference, found.low, found.high, found.metric)


def mean(evidence: Evidence, arm: str, metric: str) -> str:
    """An arm's own mean with its interval over seeds."""
    found = over_seeds([r for r in evidence.runs if r.trial.arm == arm], metric)
    return "-" if found is None else metrics.mean(found.mean, found.low, found.high, metric)


# the forest


def forest_frame(pair: Pair) -> pd.DataFrame:
    """A row per metric that has an interval, in the unit that is drawn."""
    return pd.DataFrame(
        [
            {
                "metric": metrics.plain(m.metric),
                "difference": metrics.scaled(m.difference, m.metric),
                "low": metrics.scaled(m.low, m.metric),
                "high": metrics.scaled(m.high, m.metric),
                "verdict": m.verdict,
                "over": f"{m.items:,} items, {seeds(m.seeds)}",
                "panel": panel_of(m),
                "margin": metrics.scaled(pair.margin, m.metric) if m is pair.metrics[0] else 0.0,
            }
            for m in pair.metrics
            if m.difference is not None and m.low is not None and m.high is not None
        ],
        columns=["metric", "difference", "low", "high", "verdict", "over", "panel", "margin"],
    )


def seed_frame(pair: Pair) -> pd.DataFrame:
    """A row per metric and seed."""
    return pd.DataFrame(
        [
            {
                "metric": metrics.plain(m.metric),
                "seed": seed,
                "difference": metrics.scaled(value, m.metric),
                "panel": panel_of(m),
            }
            for m in pair.metrics
            for seed, value in m.per_seed.items()
        ],
        columns=["metric", "seed", "difference", "panel"],
    )


def panel_of(metric: Metric) -> str:
    return f"{metrics.unit(metric.metric)}, {'more' if metric.higher_is_better else 'less'} is better"


def forest(pair: Pair) -> list[Panel]:
    """The difference of every metric with its interval and its seeds; metrics of one unit share a panel."""
    frame, dots = forest_frame(pair), seed_frame(pair)
    return [
        Panel(
            f"{pair.a} minus {pair.b}, in {name}",
            _panel(name, frame[frame["panel"] == name], dots[dots["panel"] == name]),
            _panel_alt(pair, frame[frame["panel"] == name]),
        )
        for name in dict.fromkeys(frame["panel"])
    ]


def _panel(name: str, frame: pd.DataFrame, dots: pd.DataFrame) -> Chart:
    title = name.partition(",")[0]
    order = list(frame["metric"])
    y = alt.Y("metric:N", sort=order, title=None, axis=alt.Axis(labelOverlap=False, labelLimit=170, grid=False))
    legend = alt.Legend(title=None, orient="top", columns=3, values=[v for v in VERDICTS if v in set(frame["verdict"])])
    color = alt.Color("verdict:N", scale=alt.Scale(domain=list(VERDICTS)), legend=legend)
    shape = alt.Shape("verdict:N", scale=alt.Scale(domain=list(VERDICTS), range=list(VERDICT_SHAPES)), legend=legend)
    tips = [
        alt.Tooltip("metric:N", title="Metric"),
        alt.Tooltip("difference:Q", title=f"Difference, {name.partition(',')[0]}", format="+.3~f"),
        alt.Tooltip("low:Q", title="Interval, from", format="+.3~f"),
        alt.Tooltip("high:Q", title="to", format="+.3~f"),
        alt.Tooltip("over:N", title="Over"),
        alt.Tooltip("verdict:N", title="Verdict"),
    ]
    base = alt.Chart(frame)
    whole = base.transform_filter("datum.margin > 0").transform_calculate(below="-datum.margin")
    band = whole.mark_rect(opacity=0.14, color="gray").encode(y=y, x="below:Q", x2="margin:Q")
    zero = alt.Chart(pd.DataFrame([{"at": 0.0}])).mark_rule(color="gray", strokeDash=[6, 4]).encode(x="at:Q")
    bars = base.mark_rule(strokeWidth=2).encode(
        y=y, x=alt.X("low:Q", title=title), x2="high:Q", color=color, tooltip=tips
    )
    points = base.mark_point(size=120, filled=True, opacity=1).encode(
        y=y, x=alt.X("difference:Q", title=title), color=color, shape=shape, tooltip=tips
    )
    hollow = alt.Chart(dots).mark_point(size=34, color="gray", filled=False, strokeWidth=1.4, yOffset=13, opacity=0.95)
    single = hollow.encode(
        y=y, x=alt.X("difference:Q", title=title),
        tooltip=[
            alt.Tooltip("metric:N", title="Metric"), alt.Tooltip("seed:N", title="Seed"),
            alt.Tooltip("difference:Q", title="Difference of this seed", format="+.3~f"),
        ],
    )  # fmt: skip
    layers: list[Any] = [*([band] if (frame["margin"] > 0).any() else []), zero, bars, points, single]
    return alt.layer(*layers).properties(
        height=ROW_HEIGHT * len(frame) + AROUND, padding={"left": 4, "top": 4, "right": 14, "bottom": 4}
    )


def _panel_alt(pair: Pair, frame: pd.DataFrame) -> str:
    said = "; ".join(
        f"{row.metric} {row.difference:+.3g} from {row.low:+.3g} to {row.high:+.3g}, {row.verdict}"
        for row in frame.itertuples()
    )
    return f"{pair.a} minus {pair.b} with intervals: {said}."


def reading(pair: Pair) -> str:
    """How to read the forest."""
    band = " The band is the margin." if pair.margin else ""
    return (
        f"Filled marks are differences with their intervals, {pair.a} minus {pair.b}; hollow dots below are single "
        f"seeds. An interval that crosses the dashed line leaves open which is better.{band}"
    )


def metrics_table(pair: Pair, evidence: Evidence) -> pd.DataFrame:
    """Every metric with both means, the difference and the verdict, as text with units."""
    return pd.DataFrame(
        [
            {
                "Metric": metrics.plain(m.metric),
                pair.a: mean(evidence, pair.a, m.metric),
                pair.b: mean(evidence, pair.b, m.metric),
                "Difference": bounded(m),
                "Verdict": m.verdict,
                "Better is": "more" if m.higher_is_better else "less",
                "Over": f"{m.items:,} items, {seeds(m.seeds)}",
            }
            for m in pair.metrics
        ]
    )


def seeds_table(pair: Pair, evidence: Evidence, address: str) -> pd.DataFrame:
    """The first metric seed by seed, with links to the two runs behind each number."""
    first = pair.metrics[0]
    runs = {(r.trial.arm, r.trial.seed): r for r in evidence.runs}
    rows = []
    for seed, found in first.per_seed.items():
        both = [runs.get((arm, int(seed))) for arm in (pair.a, pair.b)]
        links = [None if r is None else f"{address}&run={r.trial_id}" for r in both]
        rows.append(
            {
                "Seed": int(seed),
                f"Difference in {metrics.plain(first.metric)}": f"{metrics.difference(found, first.metric)} (one seed)",
                f"Run of {pair.a}": links[0],
                f"Run of {pair.b}": links[1],
            }
        )
    return pd.DataFrame(rows)


# flips


def flipping(pair: Pair) -> list[str]:
    """The metrics whose outcomes are right or wrong."""
    return [m.metric for m in pair.metrics if m.flips]


def no_flips(pair: Pair, evidence: Evidence) -> str:
    """Why there are no outcomes to set side by side."""
    reason = next((m.reason for m in pair.metrics if m.reason), None)
    origin = evidence.spec.origin
    if origin is not None:
        return f"{origin.tool} publishes no answers to single questions, so none can be set side by side."
    return "No metric that both were judged on is right or wrong for each item." + (f" {reason}" if reason else "")


def outcomes(pair: Pair) -> list[str]:
    """The four ways in which an item can come out, in the order in which they are drawn."""
    return [pairs.BOTH_RIGHT, f"only {pair.a}", f"only {pair.b}", pairs.BOTH_WRONG]


def flips_chart(pair: Pair, metric: str) -> Chart:
    """The four outcomes as parts of one bar."""
    shares = _metric(pair, metric).flips or {}
    order = outcomes(pair)
    rows, start = [], 0.0
    for i, name in enumerate(order):
        share = shares.get(name, 0.0)
        rows.append(
            {"outcome": name, "share": 100 * share, "from": 100 * start, "to": 100 * (start + share), "order": i}
        )
        start += share
    frame = pd.DataFrame(rows)
    x = alt.X("from:Q", title="Share of items and seeds (%)", scale=alt.Scale(domain=[0, 100]))
    # colours by place in the theme's list: only A and only B first, what both did alike after them
    domain = [order[1], order[2], order[0], order[3]]
    base = alt.Chart(frame)
    bars = base.mark_bar(height=34, stroke="gray", strokeWidth=0.6).encode(
        x=x, x2="to:Q",
        color=alt.Color(
            "outcome:N", scale=alt.Scale(domain=domain),
            legend=alt.Legend(title=None, orient="top", columns=2, values=order, labelLimit=260),
        ),
        tooltip=[alt.Tooltip("outcome:N", title="Outcome"), alt.Tooltip("share:Q", title="Share (%)", format=".1f")],
    )  # fmt: skip
    words = (
        base.transform_filter(f"datum.share >= {100 * LABELLED}")
        .transform_calculate(middle="(datum.from + datum.to) / 2", words="format(datum.share, '.1f') + ' %'")
        .mark_text(dy=-27, color="gray")
        .encode(x=alt.X("middle:Q", title="Share of items and seeds (%)"), text="words:N")
    )
    return alt.layer(bars, words).properties(height=170)


def flips_said(pair: Pair, metric: str) -> str:
    """The bar in words."""
    found = _metric(pair, metric)
    shares = found.flips or {}
    parts = [
        f"{name if name.startswith('both') else f'{name} right'} {percent(shares[name], 1)}" for name in outcomes(pair)
    ]
    count = found.items * len(found.per_seed)
    return f"Of {count:,} answers ({found.items:,} items, {seeds(len(found.per_seed))}): {', '.join(parts)}."


def _metric(pair: Pair, metric: str) -> Metric:
    return next(m for m in pair.metrics if m.metric == metric)


# examples


def flipped(answers: pd.DataFrame, questions: Mapping[str, str]) -> pd.DataFrame:
    """Answers of which one arm's alone was right, those first that came out so in the most seeds.

    Columns: `side` (whose was right: `a` or `b`), `question`, `target`, `answer_a`, `answer_b`, `alike` and `asked` (in
    how many seeds of how many the item came out so), `seed`, `example_id`.
    """
    found = answers[answers["score_a"].isin([0, 1]) & answers["score_b"].isin([0, 1])]
    found = found[found["score_a"] != found["score_b"]].copy()
    found["side"] = found["score_a"].map({1.0: "a", 0.0: "b"})
    found["question"] = found["example_id"].map(dict(questions))
    found["alike"] = found.groupby(["example_id", "side"])["seed"].transform("count")
    found["asked"] = found["example_id"].map(answers.groupby("example_id")["seed"].nunique())
    found["place"] = found["example_id"].str.extract(r"^(\d+)", expand=False).astype(float)
    ordered = found.sort_values(["alike", "place", "example_id", "seed"], ascending=[False, True, True, True])
    columns = ["side", "question", "target", "answer_a", "answer_b", "alike", "asked", "seed", "example_id"]
    return ordered[columns].reset_index(drop=True)


def searched(found: pd.DataFrame, side: str | None, words: str) -> pd.DataFrame:
    """Those of one side, and with the words in question, answers or target."""
    if side:
        found = found[found["side"] == side]
    if words.strip():
        texts = found[["question", "target", "answer_a", "answer_b"]].fillna("").agg(" \n ".join, axis=1)
        found = found[texts.str.contains(words.strip(), case=False, regex=False)]
    return found.reset_index(drop=True)


def items(found: pd.DataFrame) -> pd.DataFrame:
    """One row per item and side, with the answers of its first seed and the seeds in which it came out so."""
    if found.empty:
        return found.assign(seeds=[])
    together = found.groupby(["example_id", "side"], sort=False)
    return together.first().assign(seeds=together["seed"].agg(lambda s: ", ".join(map(str, s)))).reset_index()


def of_item(found: pd.DataFrame, item: "pd.Series[Any]") -> pd.DataFrame:
    """The answers of an item, a row per seed."""
    return found[(found["example_id"] == item["example_id"]) & (found["side"] == item["side"])]


def examples_table(page: pd.DataFrame, pair: Pair) -> pd.DataFrame:
    """Items under human names. Without any question known, the item's number stands in its place."""
    known = page["question"].notna().any()
    return pd.DataFrame(
        {
            "Question": page["question"].map(text) if known else "item " + page["example_id"].map(_place),
            "Right answer": page["target"].map(text),
            f"{pair.a} answered": page["answer_a"].map(text),
            f"{pair.b} answered": page["answer_b"].map(text),
            "Right": page["side"].map({"a": pair.a, "b": pair.b}),
            "In": [f"{n} of {m} seeds" for n, m in zip(page["alike"], page["asked"], strict=True)],
            "Seeds": page["seeds"],
        }
    )


def counted(found: pd.DataFrame, shown: pd.DataFrame, whole: pd.DataFrame) -> str:
    """How many there are, and how to read one whole."""
    number = f"{len(found):,} answers to {shown['example_id'].nunique():,} items flipped"
    part = "" if len(found) == len(whole) else f", of {len(whole):,} in all"
    lacks = "" if found["question"].notna().any() else f" {UNKNOWN}"
    return f"{number}{part}. Answers of the first seed are shown; choose a row to read those of all.{lacks}"


def text(value: Any) -> str:
    """A text as it was kept."""
    return value if isinstance(value, str) else "not known"


def _place(example_id: str) -> str:
    """The place of an item in its task, which its id begins with."""
    return example_id.partition("-")[0]


# settings and cost


def settings_table(pair: Pair, evidence: Evidence, summary: Summary, *, everything: bool) -> pd.DataFrame:
    """The settings of both, of which only those that differ unless everything is asked for."""
    rows = {r.arm: r for r in summary.arms}
    left, right = (_settings(evidence, rows[arm]) for arm in (pair.a, pair.b))
    names = [k for k in {**left, **right} if everything or left.get(k) != right.get(k)]
    table = [(said(k), value(left.get(k)), value(right.get(k))) for k in names]
    if everything:
        table += [(said(k), value(v), value(v)) for k, v in flat(_controls(evidence.spec)).items()]
    return pd.DataFrame(table, columns=["Setting", pair.a, pair.b])


def _settings(evidence: Evidence, row: ArmRow) -> dict[str, Any]:
    """What the judged runs were made with, which says more than the study's file: tuning chose some of it."""
    run = next((r for r in evidence.runs if r.trial.arm == row.arm), None)
    return {**pairs.settings(evidence.spec, row), **(run.trial.params if run else {})}


def _controls(spec: StudySpec) -> dict[str, Any]:
    return spec.controls.model_dump(mode="json")


def shared_settings(evidence: Evidence) -> str:
    """What both have alike and the table of differences leaves out."""
    origin = evidence.spec.origin
    if origin is not None:
        return f"As far as {origin.tool} publishes them. What is not there was left at that program's own default."
    return "Model, data, training steps and batch are the same for all configurations of a study."


def costs(pair: Pair, summary: Summary, decision: Decision) -> pd.DataFrame:
    """What both took, side by side, with the ratio of A to B."""
    rows = {r.arm: r for r in summary.arms}
    drawn = {r.arm: r for r in decision.rows}
    a, b = rows[pair.a], rows[pair.b]
    price = (drawn[pair.a].cost, drawn[pair.b].cost)
    tuned = decision.origin is None  # what others spent on tuning is not among what they publish
    lines = [
        _line("Peak memory of training", (a.peak_bytes, b.peak_bytes), size),
        _line("Time of training", (a.train_seconds, b.train_seconds), duration),
        _line("Time of a whole run", (drawn[pair.a].seconds, drawn[pair.b].seconds), duration),
        _line("Throughput", (a.tokens_per_second, b.tokens_per_second), lambda v: f"{v:,.0f} tokens/s"),
        _line("Energy of training", (a.energy_joules, b.energy_joules), energy),
        _line("Cost of a run", price, lambda v: amount(v, decision.per_hour, decision.currency)),
        _line(
            "Tuning trials",
            (a.search_trials if tuned else None, b.search_trials if tuned else None),
            lambda v: f"{v:.0f}",
        ),
        _line(
            "Time spent on tuning", (a.search_seconds if tuned else None, b.search_seconds if tuned else None), duration
        ),
        _line("Time spent in all", (a.spent_seconds, b.spent_seconds), duration),
    ]
    return pd.DataFrame(lines, columns=["What", pair.a, pair.b, f"{pair.a} against {pair.b}"])


def _line(name: str, values: tuple[float | None, float | None], words: Any) -> tuple[str, str, str, str]:
    a, b = values
    shown = ["not known" if v is None else words(v) for v in (a, b)]
    ratio = "-" if a is None or not b else f"{a / b:.2f} ×"
    return name, shown[0], shown[1], ratio
