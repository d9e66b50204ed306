"""Goals of the statistics as text."""

from collections.abc import Sequence

from harness.cli._table import table
from harness.goals import Goal


def render(goals: Sequence[Goal]) -> str:
    """The table of goals, then what naive rules reach and where each figure is from."""
    rows = [
        [f"{g.number}  {g.measure}", ("at most " if g.at_most else "at least ") + value(g.goal, g),
         value(g.figure, g), "met" if g.met else "MISSED"]
        for g in goals
    ]  # fmt: skip
    lines = [table(["", "goal", "figure", ""], rows), "", "naive rules, and where our figure is worst:"]
    for g in goals:
        naive = "; ".join(f"{rule} {value(v, g)}" for rule, v in g.naive.items())
        if naive or g.where:
            lines.append(f"{g.number}  {g.measure}")
            lines += [f"      naive: {naive}"] if naive else []
            lines += [f"      ours {value(g.figure, g)}: {g.where}"] if g.where else []
    return "\n".join(lines)


def value(figure: float, goal: Goal) -> str:
    if goal.unit == "%":
        return f"{100 * figure:.1f} %"
    return f"{figure:.2f}{' s' if goal.unit else ''}"
