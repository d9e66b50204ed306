"""The decision of a study as one file to pass on: a page that opens without a network, a pull request, or JSON."""

import importlib.util
import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from harness.content import Runs, along_memory, content_of, without_folders
from harness.decision import Decision
from harness.errors import NotReady
from harness.summary import Evidence, Summary
from harness.wording import ranked_reading, trade_off_reading

if TYPE_CHECKING:
    from harness.charts import Chart

HTML_MARK = '<meta name="generator" content="harness report">'
MD_MARK = "<!-- harness report -->"
JSON_MARK = '"harness": '
"""By these a file is known to have been written here, so that it may be written again."""
WIDE, NARROW = 720, 330
"""Pixels of a chart on a screen, and on a phone."""
NARROW_LABELS = 110
"""Pixels of a configuration's name on a phone: they leave room for what is drawn."""


@dataclass(frozen=True)
class Picture:
    """A chart of the page, once for a screen and once for a phone."""

    wide: str
    narrow: str
    caption: str


def html(evidence: Evidence, summary: Summary, decision: Decision, file: str = "FILE") -> str:
    """The report as one page that asks nothing of the network and runs no script.

    Raises:
        NotReady: the packages that draw are not installed.
    """
    missing = [name for name in ("altair", "vl_convert") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotReady(
            f"a report in HTML needs {' and '.join(missing)}, not installed here",
            "pip install 'finetune-harness[dashboard]', or write --md",
        )
    from harness import charts

    found = along_memory(evidence, summary, decision)
    ranked, narrow = charts.ranked(decision), charts.ranked(decision, label_limit=NARROW_LABELS)
    pictures = {
        "ranked": _picture(ranked, narrow, "ranked", charts.ranked_alt(decision), ranked_reading(decision))
        if ranked and narrow
        else None,
        "trade_off": None,
    }
    chart = charts.trade_off(found, decision) if found else None
    if found and chart:
        words = " ".join(trade_off_reading(found, decision))
        pictures["trade_off"] = _picture(chart, chart, "front", charts.trade_off_alt(found, decision), words)
    content = content_of(evidence, summary, decision, f"--html {shlex.quote(file)}")
    text: str = _template("report.html.jinja").render(
        c=content, pictures=pictures, mark=HTML_MARK, light=charts.LIGHT, dark=charts.DARK
    )
    return text


def markdown(evidence: Evidence, summary: Summary, decision: Decision) -> str:
    """The report for a pull request: GitHub's Markdown, without pictures."""
    content = content_of(evidence, summary, decision, "--md")
    text: str = _template("report.md.jinja").render(c=content, mark=MD_MARK)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def decision_json(decision: Decision) -> str:
    """`decision.json`: strict JSON, so that what is not a number is null; commands as in the other two."""
    plain = decision.as_json()
    for place, key in ((plain, "next_command"), (plain["chosen"] or {}, "command")):
        place[key] = place.get(key) and without_folders(place[key])
    return json.dumps(_strict(plain), indent=2, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    """Numbers that JSON does not have become null, numbers of numpy those of Python."""
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    if hasattr(value, "item"):
        return _strict(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


INK, MUTED, LINES = "#010101", "#020202", "#030303"
CATEGORIES = [f"#0a0a{i:02d}" for i in range(8)]
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINES: "var(--line)"} | {
    color: f"var(--c{i})" for i, color in enumerate(CATEGORIES)
}
CONFIG = {
    "aria": False,
    "background": None,
    "view": {"stroke": None},
    "range": {"category": CATEGORIES},
    "axis": {
        "labelColor": MUTED, "titleColor": MUTED, "gridColor": LINES, "domainColor": LINES, "tickColor": LINES,
        "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal",
    },
    "legend": {"labelColor": INK, "labelFontSize": 12, "symbolSize": 90},
}  # fmt: skip


def _picture(wide: "Chart", narrow: "Chart", name: str, alt: str, caption: str) -> Picture:
    return Picture(_svg(wide, f"{name}-wide", WIDE, alt), _svg(narrow, f"{name}-narrow", NARROW, alt), caption)


def _svg(chart: "Chart", name: str, width: int, alt: str) -> str:
    """A chart as SVG to stand in a page: named, with colours of the page, nothing in it that could clash or load."""
    import vl_convert

    spec = chart.to_dict()
    steps = isinstance(spec.get("height"), dict)
    spec |= {"width": width, "autosize": {"type": "fit-x" if steps else "fit", "contains": "padding"}, "config": CONFIG}
    drawn = vl_convert.vegalite_to_svg(spec)
    for color, variable in VARIABLES.items():
        drawn = drawn.replace(f'"{color}"', f'"{variable}"')
    drawn = re.sub(r'(id="|url\(#)(\w+)', rf"\g<1>{name}-\g<2>", drawn)
    drawn = re.sub(r' (?:aria-\w+|role)="[^"]*"', "", drawn)
    head, _, body = drawn.partition(">")
    box = head.partition('viewBox="')[2].partition('"')[0]
    label = escape(alt)
    _, _, w, h = box.split()
    return (
        f'<svg class="chart" role="img" aria-label="{label}" viewBox="{box}" width="{w}" height="{h}">'
        f"<title>{label}</title>{body}"
    )


@cache
def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(
        loader=loader, autoescape=name.endswith(".html.jinja"), trim_blocks=True, lstrip_blocks=True
    )
    page.filters["md"] = _md
    page.filters["code"] = _code
    page.tests["runs"] = lambda cell: isinstance(cell, Runs)
    return page.get_template(name)


def _md(text: object) -> str:
    """Text for Markdown and for the cell of a table, shown as it is."""
    safe = re.sub(r"\s+", " ", str(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    safe = re.sub(r"([\\`*|~$]|\](?=\()|(?<!&)#(?=\d))", r"\\\1", safe)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", safe).replace("@", "&#64;")


def _code(text: object) -> str:
    """Text between backticks, in as many as it takes."""
    bare = re.sub(r"\s+", " ", str(text))
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", bare)), default=0))
    space = " " if bare.startswith("`") or bare.endswith("`") else ""
    return f"{ticks}{space}{bare}{space}{ticks}"
