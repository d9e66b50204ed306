"""An invented world in text: what the embedded model is pretrained on, what it can learn, and how both are asked for.

Everything is drawn from one seed, so the corpus, the training rows and the test items can be made again byte by byte.
Facts about people and skills on lists are in the corpus. Sorting downwards and finding the second largest are not, so
the base cannot do them and fine-tuning has something to teach.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

CITIES = ("Arvo", "Belm", "Corin", "Dalby", "Esker", "Fenwick", "Garrow", "Holt")
JOBS = ("baker", "carver", "doctor", "farmer", "miller", "pilot", "singer", "tailor")
PETS = ("cat", "crow", "dog", "fox", "goat", "hare", "owl", "pony")
FOODS = ("apples", "beans", "bread", "cheese", "honey", "onions", "plums", "soup")
COLOURS = ("amber", "black", "blue", "green", "grey", "purple", "red", "white")

SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "xa", "zu")


@dataclass(frozen=True)
class Attribute:
    """One kind of fact: its values, plain sentences that state it and questions that ask for it."""

    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


ATTRIBUTES = (
    Attribute(
        "city",
        CITIES,
        ("{who} lives in {value}.", "The home of {who} is {value}.", "{value} is where {who} lives."),
        ("Where does {who} live?", "In which place is the home of {who}?"),
    ),
    Attribute(
        "job",
        JOBS,
        ("{who} works as a {value}.", "The job of {who} is {value}.", "As a {value}, {who} earns a living."),
        ("What is the job of {who}?", "What does {who} work as?"),
    ),
    Attribute(
        "pet",
        PETS,
        ("{who} keeps a {value}.", "The pet of {who} is a {value}.", "A {value} belongs to {who}."),
        ("Which pet does {who} keep?", "What animal belongs to {who}?"),
    ),
    Attribute(
        "food",
        FOODS,
        ("{who} likes {value}.", "The favourite food of {who} is {value}.", "Nothing pleases {who} like {value}."),
        ("What does {who} like to eat?", "What is the favourite food of {who}?"),
    ),
    Attribute(
        "colour",
        COLOURS,
        ("{who} wears {value}.", "The coat of {who} is {value}.", "In {value} {who} is seen."),
        ("What colour does {who} wear?", "What is the colour of the coat of {who}?"),
    ),
)


@dataclass(frozen=True)
class World:
    """The people of the corpus and what is true of them: value by person and attribute."""

    facts: dict[str, dict[str, str]]


def make_world(seed: int = 0, people: int = 60) -> World:
    """Draw `people` with one value per attribute, values as balanced as they can be."""
    rng = random.Random(f"world-{seed}")
    columns = {a.name: _balanced(rng, a.values, people) for a in ATTRIBUTES}
    return World({name: {a: columns[a][i] for a in columns} for i, name in enumerate(_names(rng, people))})


def chat(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    """One exchange as a row of messages."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def corpus(world: World, rng: random.Random) -> Iterator[str | dict[str, list[dict[str, str]]]]:
    """Endless documents of the pretraining mix: half facts (stated or asked), half skills on short lists of digits."""
    people = list(world.facts)
    while True:
        if rng.random() < 0.5:
            who = rng.choice(people)
            attribute = rng.choice(ATTRIBUTES)
            value = world.facts[who][attribute.name]
            if rng.random() < 0.5:
                yield rng.choice(attribute.statements).format(who=who, value=value)
            else:
                yield chat(rng.choice(attribute.questions).format(who=who), value)
        else:
            yield skill(rng)


def skill(rng: random.Random) -> dict[str, list[dict[str, str]]]:
    """One exercise of the kinds that the base is pretrained on; what the tasks teach is not among them."""
    digits = digit_list(rng)
    shown = " ".join(digits)
    kind = rng.choice(("up", "up", "reverse", "repeat", "largest", "smallest", "first", "last", "count", "add"))
    if kind == "up":
        return sort_up(digits)
    if kind == "reverse":
        return chat(f"Reverse {shown}.", " ".join(reversed(digits)))
    if kind == "repeat":
        return chat(f"Repeat {shown}.", shown)
    if kind == "largest":
        return chat(f"Name the largest of {shown}.", max(digits))
    if kind == "smallest":
        return chat(f"Name the smallest of {shown}.", min(digits))
    if kind == "first":
        return chat(f"Name the first of {shown}.", digits[0])
    if kind == "last":
        return chat(f"Name the last of {shown}.", digits[-1])
    if kind == "count":
        return chat(f"Count {shown}.", str(len(digits)))
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return chat(f"Add {a} and {b}.", str(a + b))


def digit_list(rng: random.Random, shortest: int = 3, longest: int = 6) -> list[str]:
    return [str(rng.randint(0, 9)) for _ in range(rng.randint(shortest, longest))]


def sort_up(digits: list[str]) -> dict[str, list[dict[str, str]]]:
    return chat(f"Sort {' '.join(digits)} upwards.", " ".join(sorted(digits)))


def sort_down(digits: list[str]) -> dict[str, list[dict[str, str]]]:
    """A task that the base cannot do: the words of `sort_up` but for the last."""
    return chat(f"Sort {' '.join(digits)} downwards.", " ".join(sorted(digits, reverse=True)))


def second_largest(digits: list[str]) -> dict[str, list[dict[str, str]]]:
    """A task that the base cannot do, though it can name the largest. A digit that occurs twice counts twice."""
    return chat(f"Name the second largest of {' '.join(digits)}.", sorted(digits)[-2])


def distinct_lists(rng: random.Random, count: int, taken: set[str], shortest: int = 3) -> list[list[str]]:
    """`count` lists that differ from each other and from `taken`, which is extended by them."""
    lists: list[list[str]] = []
    while len(lists) < count:
        digits = digit_list(rng, shortest)
        key = " ".join(digits)
        if key not in taken:
            taken.add(key)
            lists.append(digits)
    return lists


def _names(rng: random.Random, count: int) -> list[str]:
    names: set[str] = set()
    while len(names) < count:
        first = "".join(rng.choice(SYLLABLES) for _ in range(2)).capitalize()
        last = "".join(rng.choice(SYLLABLES) for _ in range(2)).capitalize()
        names.add(f"{first} {last}")
    ordered = sorted(names)
    rng.shuffle(ordered)
    return ordered


def _balanced(rng: random.Random, values: tuple[str, ...], count: int) -> list[str]:
    column = [values[i % len(values)] for i in range(count)]
    rng.shuffle(column)
    return column
