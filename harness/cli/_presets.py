"""Where study files lie: a path, the current folder's `studies/`, the ones that come with the program."""

from pathlib import Path

from harness.errors import SpecError, did_you_mean

PACKAGE = Path(__file__).resolve().parent.parent
FOLDERS = (Path("studies"), PACKAGE / "studies", PACKAGE.parent / "studies")
"""In the order they are searched; the last is a checkout's."""


def find_study(name: str) -> Path:
    """The file of a study given by path or by name.

    Raises:
        SpecError: there is no such file and no study of that name.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = known_studies()
    if name in known:
        return known[name]
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        raise SpecError(f"no file {name}", "harness presets ls")
    raise SpecError(f"no study {name!r}; {did_you_mean(name, known)}", "harness presets ls")


def known_studies() -> dict[str, Path]:
    """Study files by name; of two with one name the one that is found first."""
    found: dict[str, Path] = {}
    for folder in FOLDERS:
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))
