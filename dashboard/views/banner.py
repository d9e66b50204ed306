"""The answer of a page: a badge, the sentence it comes to, and what a reader should know beside it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Banner:
    badge: str
    icon: str
    color: str
    sentence: str
    details: list[str] = field(default_factory=list)
