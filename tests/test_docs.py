"""The documentation says what the code does: names, keys, columns, commands, links and numbers are looked up in it."""

import ast
import contextlib
import io
import math
import re
import shlex
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from conftest import MakeRecord, MakeSpec
from pydantic import BaseModel
from scipy import stats

from harness import cli, plugins
from harness.cli import harness
from harness.cli._presets import find_study, known_studies
from harness.compare import claims, holm
from harness.intervals import Difference, Spread, difference
from harness.record import Status
from harness.spec import StudySpec, load_study
from harness.store import SCHEMAS, Store

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = "\n".join(p.read_text(encoding="utf-8") for p in PAGES)
KINDS = ("methods", "quantization", "launchers", "trackers", "importers", "exporters")
CELL = re.compile(r"^\| `([^`]+)`")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def section(page: str, title: str) -> str:
    """What stands under a heading, up to the next of its level."""
    level = title.split()[0]
    _, _, rest = page.partition(f"\n{title}\n")
    assert rest, f"no heading {title!r}"
    return re.split(rf"^{level} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def output_of(code: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {"__name__": "an_example"})
    return printed.getvalue()


def command_lines() -> list[str]:
    """Every `harness ...` of the pages that is a whole command: in blocks of shell, and between backticks."""
    found = []
    for page in PAGES:
        content = page.read_text(encoding="utf-8")
        found += [line for block in blocks(page, "(?:sh)?") for line in block.splitlines()]
        found += re.findall(r"`(f?t?harness [^`\n]+)`", re.sub(r"^```.*?^```", "", content, flags=re.M | re.S))
    commands = [line.strip() for line in found if re.match(r"\s*(ft)?harness ", line)]
    return list(dict.fromkeys(line for line in commands if not is_a_pattern(line)))


def is_a_pattern(line: str) -> bool:
    """Whether a command holds something to be filled in: a word in capitals, an ellipsis, brackets around a word."""
    words = shlex.split(line, comments=True)
    return any(re.fullmatch(r"[A-Z][A-Z_]+|[A-Z]|<.*>|.*\.\.\.|\[[A-Z].*", word) for word in words)


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a study file, with NAME for an arm and PARAM for a parameter."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        inner = field.annotation
        if typing.get_origin(inner) is dict and isinstance(typing.get_args(inner)[1], type):
            inner = typing.get_args(inner)[1]
            name += {"arms": ".NAME", "at": ".NAME", "search": ".PARAM"}.get(name, "")
        inner = section_of(inner)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{prefix}{name}.")


def section_of(annotation: Any) -> Any:
    """Of a section that may be left out, the section."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else ()
    return next((a for a in options if isinstance(a, type) and issubclass(a, BaseModel)), annotation)


def bound_keys(file: Path) -> Iterator[str]:
    """The keys of the controls in a file of the dashboard that stand in the address of a page."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        given = {k.arg: k.value for k in call.keywords}
        if isinstance(call.func, ast.Attribute) and call.func.attr == "choice":  # of `shared`, which binds its key
            given = {"bind": ast.Constant("query-params"), "key": call.args[3]}
        if isinstance(bind := given.get("bind"), ast.Constant) and bind.value == "query-params":
            names = [name for name in ast.walk(given["key"]) if isinstance(name, ast.Name)]
            values = values_of(names[0], parents, tree) if names else [""]
            assert values, f"{file.name}: the key {ast.unparse(given['key'])} is not understood"
            for value in values:
                yield in_place(given["key"], value)


def values_of(name: ast.Name, parents: dict[ast.AST, ast.AST], tree: ast.AST) -> list[str]:
    """The words that a name takes: those of the loop around it, else those that its function is called with."""
    node: ast.AST = name
    while node in parents:
        node = parents[node]
        if isinstance(node, ast.For) and name.id in {n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)}:
            named = {n.id for n in ast.walk(node.iter) if isinstance(n, ast.Name)}
            tables = [
                n.value for n in ast.walk(tree) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) in named
            ]
            keys = [key for table in tables if isinstance(table, ast.Dict) for key in table.keys]
            return words([*ast.walk(node.iter), *keys])
        if isinstance(node, ast.FunctionDef) and name.id in (parameters := [a.arg for a in node.args.args]):
            place = parameters.index(name.id)
            calls = [c for c in ast.walk(tree) if isinstance(c, ast.Call) and ast.unparse(c.func) == node.name]
            return words([c.args[place] for c in calls])
    return []


def words(nodes: Iterable[ast.AST | None]) -> list[str]:
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def in_place(key: ast.expr, value: str) -> str:
    """A key written as a word, as a name, or as an f-string around one."""
    parts = key.values if isinstance(key, ast.JoinedStr) else [key]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else value for part in parts)


def test_every_control_in_the_address_of_a_page_is_documented_and_no_other() -> None:
    rows = section(text("docs/dashboard.md"), "## What is in the address").splitlines()
    documented = [name for row in rows if CELL.match(row) for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    bound = {key for file in (ROOT / "dashboard").rglob("*.py") for key in bound_keys(file)}
    # a word, a parameter, a loop over words, an f-string in a loop over a table
    assert {"study", "vram", "a", "b", "runs_status"} <= bound
    assert sorted(documented) == sorted(bound)


def test_every_command_is_in_the_readme() -> None:
    for name in harness.list_commands(click.Context(harness)):
        assert f"`harness {name}" in text("README.md"), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_plugin_is_documented(kind: str) -> None:
    files = [p.stem for p in (ROOT / "harness" / kind).glob("*.py") if not p.stem.startswith("_")]
    assert files
    for name in files:
        assert f"`{name}`" in text("docs/plugins.md"), name


def test_every_parameter_of_a_plugin_is_documented() -> None:
    arms = section(text("docs/study-file.md"), "## Arms: what is compared")
    for kind, find in (("methods", plugins.method), ("quantization", plugins.quantization)):
        for path in (ROOT / "harness" / kind).glob("[a-z]*.py"):
            for parameter in find(path.stem).params.model_fields:
                row = rf"^\| [^|]*`{path.stem}`[^|]*\| `{parameter}` \|"
                assert re.search(row, arms, re.MULTILINE), f"{path.stem}: {parameter}"


def test_every_target_of_make_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.MULTILINE))
    assert {"study", "test"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 _-]", "", t.lower()).replace(" ", "-") for t in titles}, target


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_parses(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = harness
    parent: click.Context | None = None
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        parent = click.Context(command, info_name=command.name, parent=parent)
        name = words.pop(0)
        found = command.get_command(parent, name)
        assert found is not None, f"no command {name}"
        command = found
    if not words:
        return  # a command spoken of by its name
    with contextlib.suppress(click.exceptions.Exit):  # --help and --version
        context = command.make_context(command.name, list(words), parent=parent)
        study, overrides = context.params.get("study"), context.params.get("overrides", ())
        if study in known_studies():
            load_study(find_study(study), overrides)
        else:
            assert not overrides, "overrides are tried on a study that is shipped"


def test_there_are_command_lines_to_try() -> None:
    # a change of the pattern that finds none would let every mistake pass
    assert len(command_lines()) >= 10
    assert is_a_pattern("harness study STUDY [KEY=VALUE]...")
    assert not is_a_pattern("harness study tiny-methods 'confirm.seeds=[101,102]'")


def test_every_key_of_a_study_file_is_documented_and_no_other() -> None:
    page = text("docs/study-file.md")
    documented = {m[1] for line in page.splitlines() if (m := CELL.match(line)) and line.count(" | ") >= 3}
    wanted = set(keys(StudySpec))
    assert {"arms.NAME.search.PARAM.low", "serve.at.NAME.params", "serve.speeds.batches"} <= wanted
    assert wanted <= documented, f"not documented: {sorted(wanted - documented)}"
    sections = {k.split(".")[0] for k in wanted}
    unknown = {d for d in documented if d.split(".")[0] in sections} - wanted
    assert not unknown, f"documented, but no key: {sorted(unknown)}"


def test_documented_defaults_are_those_of_the_models() -> None:
    lines = text("docs/study-file.md").splitlines()
    cells = {m[1]: [c.strip() for c in line.split("|")] for line in lines if (m := CELL.match(line))}
    for dotted in keys(StudySpec):
        *place, name = dotted.split(".")
        owner: Any = StudySpec
        for part in place:
            if part not in {"NAME", "PARAM"}:
                owner = section_of(owner.model_fields[part].annotation)
            if typing.get_origin(owner) is dict:
                owner = typing.get_args(owner)[1]
        field = owner.model_fields[name]
        default = field.default
        shown = cells[dotted][3].strip("`")
        if field.is_required():
            assert shown == "required", dotted
        elif isinstance(default, bool):
            assert shown == str(default).lower(), dotted
        elif isinstance(default, int | float):
            assert float(shown) == default, dotted
        elif isinstance(default, str) and default:
            assert shown == default, dotted
        elif default in ([], {}, ""):
            assert shown == "empty", dotted


@pytest.mark.parametrize("table", SCHEMAS)
def test_the_documented_columns_are_those_of_the_store(table: str) -> None:
    rows = section(text("docs/records.md"), f"## `{table}`").splitlines()
    assert [m[1] for line in rows if (m := CELL.match(line))] == SCHEMAS[table].names


def test_every_column_has_a_unit() -> None:
    for table in SCHEMAS:
        for line in section(text("docs/records.md"), f"## `{table}`").splitlines():
            if CELL.match(line):
                assert line.split("|")[2].strip(), line


def test_every_status_is_explained() -> None:
    rows = section(text("docs/records.md"), "## Status")
    assert {m[1] for line in rows.splitlines() if (m := CELL.match(line))} == set(typing.get_args(Status))


def test_the_examples_of_reading_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_record: MakeRecord, make_spec: MakeSpec
) -> None:
    store = Store(tmp_path / "results").open(make_spec(name="tiny-methods"))
    store.write(make_record())
    store.write(make_record(attempt=2, environment={"packages": {"torch": "9.9"}}))
    monkeypatch.chdir(tmp_path)
    with_pandas, with_duckdb = (output_of(b) for b in blocks(ROOT / "docs" / "records.md", "python"))
    assert re.search(r"recall +exact_match +0.75", with_pandas)
    assert "9.9" in with_duckdb


def test_the_examples_of_plugins_are_python_that_runs() -> None:
    some = blocks(ROOT / "docs" / "plugins.md", "python")
    whole = [b for b in some if "import" in b]
    assert len(whole) == 5
    for code in whole:
        names: dict[str, Any] = {"__name__": "an_example"}
        exec(code, names)
        assert "plugin" in names


def test_the_interval_worked_by_hand_is_the_one_of_the_code() -> None:
    page = ROOT / "docs" / "measurement.md"
    by_hand = section(page.read_text(encoding="utf-8"), "### By hand")
    rows = re.findall(r"^\| (\w+), seed \d+ \| ([01]) \| ([01]) \| ([01]) \| ([01]) \| ([\d.]+) \|$", by_hand, re.M)
    arms = {arm: np.array([[float(v) for v in r[1:5]] for r in rows if r[0] == arm]) for arm in ("lora", "full")}
    assert all(float(r[5]) == np.mean([float(v) for v in r[1:5]]) for r in rows)
    found = difference(arms["lora"], arms["full"])
    low, high = found.bounds(0.05)
    shown = f"{found.value:.3f} [{low:+.3f}, {high:+.3f}]"
    assert shown in by_hand
    assert f"a share of {found.seed_share:.3f}" in by_hand
    # V = 1/16 + 1/24 + 1.75/12 = 1/4, as its three terms are given there
    terms = [(0.125 / 2, 1), (1 / 12 / 2, 1), (1.75 / 12, 3)]
    variance = sum(v for v, _ in terms)
    df = variance**2 / sum(v**2 / f for v, f in terms)
    t = float(stats.t.ppf(0.975, df))
    assert f"= {df:.3f}, and t(0.975, {df:.3f}) = {t:.3f}" in by_hand
    assert (high - low) / 2 == pytest.approx(t * math.sqrt(variance))
    one_sided = float(stats.t.sf(0.46, df))
    assert f"with probability {one_sided:.3f}; twice that is p = {2 * one_sided:.3f}" in by_hand
    assert claims(found, 0.02) == {"worse": pytest.approx(2 * one_sided), "better": 1.0, "equivalent": 1.0}
    (code,) = blocks(page, "python")
    assert output_of(code) == (
        f"{found.value:+.3f} [{low:+.3f}, {high:+.3f}], seed share 0.417\n"
        f"not shown; nearest: worse, p {2 * one_sided:.3f}\n"
    )


def test_the_labels_of_several_arms_worked_by_hand_are_those_of_the_code() -> None:
    by_hand = section(text("docs/measurement.md"), "### By hand: several arms")
    rows = re.findall(
        r"^\| (\w+) \| (-[\d.]+) \| (\w+) \| .* = ([\d.]+) \| ([\d.]+) \| (.*) \| ([\w ]+) \|$", by_hand, re.M
    )
    assert [r[0] for r in rows] == ["int8", "nf4", "lora"]
    certain = Spread(
        2, 0.0, 0.0
    )  # no noise between seeds: the item term alone, with 21 items and 20 degrees of freedom
    found = []
    for arm, value, claim, t, p, _, _ in rows:
        error = 0.006 if arm == "int8" else 0.01
        by_claim = claims(Difference(float(value), certain, certain, 21, 21, error**2), 0.02)
        assert min(by_claim, key=lambda c: by_claim[c]) == claim
        assert by_claim[claim] == pytest.approx(2 * stats.t.sf(float(t), 20))
        assert f"{by_claim[claim]:.4f}" == p
        found.append(by_claim[claim])
    for adjusted, (_, _, claim, _, _, shown, label) in zip(holm(found), rows, strict=True):
        assert f"{adjusted:.4f}" in shown
        assert label == (claim if adjusted <= 0.05 else "not shown")


def test_the_documented_layers_are_the_enforced_ones() -> None:
    contracts = tomllib.loads(text("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    assert "\n".join(["```", *layers, "```"]) in section(text("docs/architecture.md"), "## Layers")


def test_every_module_is_in_the_tree() -> None:
    tree = section(text("docs/architecture.md"), "## The tree")
    for path in (ROOT / "harness").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert f"  {path.name}/" in tree, path.name
        elif path.suffix == ".py" and path.name != "__init__.py":
            assert f"  {path.name} " in tree, path.name


def test_every_part_of_the_dashboard_and_every_quantization_is_in_the_tree() -> None:
    tree = section(text("docs/architecture.md"), "## The tree")
    for path in (ROOT / "dashboard").iterdir():
        if path.suffix in {".py", ".toml"} and path.name != "__init__.py":
            assert f"  {path.name} " in tree, path.name
        elif path.is_dir() and path.name != "__pycache__":
            assert f"  {path.name}/" in tree, path.name
    (line,) = (row for row in tree.splitlines() if row.startswith("  quantization/"))
    for path in (ROOT / "harness" / "quantization").glob("[a-z]*.py"):
        family = re.sub(r"(hqq|gptq)\d", r"\1", path.stem)
        assert re.search(rf"\b{family}\b", line), path.stem


def test_every_page_of_the_dashboard_is_described_with_a_picture() -> None:
    reading = section(text("docs/dashboard.md"), "## How to read each page")
    for path in (ROOT / "dashboard" / "app_pages").glob("[a-z]*.py"):
        title = path.stem.replace("_", " ").replace("trade offs", "trade-offs").capitalize()
        assert re.search(r"!\[[^\]]{20,}\]\(pictures/", section(reading, f"### {title}")), path.stem


def test_exit_codes_are_those_of_the_command_line() -> None:
    assert cli.__doc__ is not None
    told = set(re.findall(r"(?:^|, )(\d+) ", " ".join(cli.__doc__.split("\n\n")[1].split(". The result")[0].split())))
    assert told == set(re.findall(r"^\| (\d+) \|", section(text("README.md"), "## Commands"), re.MULTILINE))


def test_no_text_names_a_path_of_the_machine_it_was_written_on() -> None:
    places = ("work", "tmp", "root", "home", "mnt", "Users", "private", "scratch")
    path = re.compile(rf"(?<![\w.~}}>)-])/(?:{'|'.join(places)})/\w")
    folders = ("harness", "studies", "docs", "tests", "benchmarks", ".ci")
    suffixes = {".py", ".md", ".yaml", ".yml", ".toml", ".jinja", ".txt", ".json", ""}
    files = [p for name in folders for p in (ROOT / name).rglob("*") if p.is_file() and p.suffix in suffixes]
    files += [p for p in ROOT.iterdir() if p.is_file() and p.suffix in suffixes and not p.name.startswith(".git")]
    assert len(files) > 50
    for file in files:
        found = path.search(file.read_text(encoding="utf-8", errors="ignore"))
        assert not found, f"{file.relative_to(ROOT)}: {found[0] if found else ''}"
