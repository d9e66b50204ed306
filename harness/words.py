"""Parts of sentences: lists, counts and capitals."""

from collections.abc import Sequence


def listed(some: Sequence[str], most: int | None = None) -> str:
    """`a, b and c`; of more than `most` the first ones and how many more."""
    if most is not None and len(some) > most:
        return f"{', '.join(some[:most])} and {len(some) - most} more"
    return " and ".join(filter(None, [", ".join(some[:-1]), *some[-1:]]))


def capital(text: str) -> str:
    """With a capital at its beginning, the rest as it is."""
    return text[:1].upper() + text[1:]


def count(number: int, noun: str) -> str:
    """`1 run`, `1,200 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def seeds(number: int) -> str:
    """`one seed`, `5 seeds`: a word, for it says that there is no interval."""
    return "one seed" if number == 1 else count(number, "seed")
