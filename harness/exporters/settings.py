"""Every setting of a configuration in one YAML file, with what was measured and where: to set it up in any tool."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from harness.interfaces import Exporter
from harness.units import size

if TYPE_CHECKING:
    from harness.configuration import Configuration, Figure

WIDTH = 120


class Settings:
    about = "All settings and measured figures in one YAML file"

    def files(self, configuration: "Configuration") -> Mapping[str, str]:
        plain: dict[str, Any] = configuration.model_dump(mode="json")
        body = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=WIDTH)
        return {f"{configuration.name}-settings.yaml": "\n".join([*_head(configuration), body])}


def _head(configuration: "Configuration") -> list[str]:
    """The comment that every exported file begins with: whose results these are and what they were."""
    seeds = max((len(f.runs) for f in configuration.measured), default=0)
    made = f"results of {configuration.origin}" if configuration.origin else f"commit {configuration.commit}"
    lines = [
        f"Written by harness {configuration.harness} from study {configuration.study}, trial {configuration.trial_id}.",
        f"Measured {configuration.measured_at:%Y-%m-%d} on {configuration.hardware} ({made}), "
        + ("one seed:" if seeds == 1 else f"mean over {seeds} seeds with its 95 % interval:"),
        *(f"  {_said(figure)}" for figure in configuration.measured),
    ]
    if configuration.origin:
        lines.append(
            "What these results do not say stands here as the defaults of harness; check it with their source."
        )
    return [f"# {' '.join(line.splitlines())}" if line[0] != " " else f"#{line}" for line in lines]


def _said(figure: "Figure") -> str:
    if figure.unit == "bytes":
        return f"{figure.name}: {size(round(figure.value))}"
    bounds = "" if figure.low is None or figure.high is None else f" [{figure.low:.5g}, {figure.high:.5g}]"
    return f"{figure.name}: {figure.value:.5g}{bounds} {figure.unit}"


plugin: Exporter = Settings()
