"""The question: a study file, read with its overrides and checked to the last key."""

import copy
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.errors import SpecError, did_you_mean

Scalar = bool | int | float | str
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["fp32", "bf16", "fp16"]
AUTO: Final = "auto"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""Of an arm or a bit-width. No dot: overrides name them within a dotted key."""


class Value(BaseModel):
    """A value that crosses a file or a process: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Section(Value):
    """A part of a study file. Its numbers are finite: `.nan` and `.inf` pass no check that compares."""

    model_config = ConfigDict(allow_inf_nan=False)


class ModelSource(Section):
    """The base model that every arm starts from."""

    id: str
    """`tiny` (embedded), a folder, or a hub id such as `meta-llama/Llama-2-7b-hf`."""
    revision: str | None = None
    """Branch, tag or commit on the hub; the commit it meant is kept in the record."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless asked for by name."""


class DataSource(Section):
    """The rows that every arm is trained on, and how they are split once per study."""

    path: str
    """`tiny` (embedded), a .jsonl/.json/.csv/.parquet file, or a hub id such as `timdettmers/openassistant-guanaco`."""
    revision: str | None = None
    subset: str | None = None
    """Name of the configuration of a hub data set."""
    split: str = "train"
    """Split of a hub data set that the rows come from."""
    format: Literal["auto", "messages", "prompt-completion", "alpaca", "text"] = "auto"
    columns: dict[str, str] = {}
    """Our name of a column to yours, e.g. `{prompt: question, completion: answer}`."""
    rows: int | None = Field(None, gt=0)
    """Use only this many rows, drawn with `split_seed`."""
    validation_rows: int = Field(200, gt=0)
    """Rows that tuning may look at; never trained on."""
    test_rows: int = Field(200, gt=0)
    """Rows that only confirmed runs are judged on."""
    split_seed: int = 0


class Training(Section):
    """How long and how every arm is trained. The learning rate is not here: each arm has its own."""

    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, gt=0)
    """Optimizer steps; wins over `epochs`."""
    batch: int = Field(16, gt=0)
    """Sequences per optimizer step (effective batch)."""
    micro_batch: int | None = Field(None, gt=0)
    """Sequences per forward pass; the rest is accumulated. The whole batch when unset."""
    max_length: int = Field(1024, gt=1)
    """Tokens per sequence; longer ones are cut at the end."""
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: str = "adamw_torch"
    """A name of transformers' `OptimizerNames`."""
    gradient_checkpointing: bool = False
    compute_dtype: Dtype = "fp32"
    """Dtype of activations and of weights that are not quantized, on quantized bases too."""
    adapter_dtype: Dtype = "fp32"
    """Dtype of adapter weights and so of their optimizer state, the same on every base."""
    divergence_factor: float = Field(3.0, gt=1)
    """A run has diverged when its smoothed loss exceeds this many times its first losses."""

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> "Training":
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide batch {self.batch}")
        return self

    @property
    def per_pass(self) -> int:
        """Sequences per forward pass."""
        return self.micro_batch or self.batch

    @property
    def smaller(self) -> int | None:
        """The next smaller micro-batch of the same effective batch: half as many sequences, or the most below that
        which divide it. None: there is one sequence per pass already."""
        return next((n for n in range(self.per_pass // 2, 0, -1) if self.batch % n == 0), None)


class Evaluation(Section):
    """What every arm is asked after training."""

    tasks: list[str] | Literal["auto"] = AUTO
    """lm-eval task names or YAML files; `auto`: those that belong to the data."""
    retention: list[str] | Literal["auto"] = AUTO
    """Tasks the base can do already, to see what was forgotten; `auto`: those that belong to the model."""
    limit: int | None = Field(None, gt=0)
    """Items per task."""
    batch: int = Field(64, gt=0)
    chat_template: bool | Literal["auto"] = AUTO
    """Wrap questions in the chat template; `auto`: retention tasks always, targets when the rows are conversations."""


class Controls(Section):
    """What every arm shares. An arm has no field for anything in here, so what is held fixed cannot differ."""

    model: ModelSource
    data: DataSource
    train: Training = Training()
    evaluate: Evaluation = Evaluation()
    device: Device = "auto"
    """`cuda`: a GPU is needed; `auto`: a GPU if there is one."""


class Range(Section):
    """Where a hyperparameter is searched: between two bounds, or among choices."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: list[Scalar] | None = None
    start: list[Scalar] = []
    """Values tried first, in this order: the literature's default, then a sweep. The sampler takes over after them."""

    @model_validator(mode="after")
    def _bounds_or_choices(self) -> "Range":
        if self.choices:
            outside = [v for v in self.start if v not in self.choices]
        elif self.low is None or self.high is None or self.low >= self.high:
            raise ValueError("needs low < high, or choices")
        elif self.log and self.low <= 0:
            raise ValueError(f"a log range needs low > 0, got {self.low}")
        else:
            words = [v for v in self.start if isinstance(v, str | bool)]
            if words:
                raise ValueError(f"start value {words[0]!r} is not a number")
            outside = [v for v in self.start if not isinstance(v, str) and not self.low <= v <= self.high]
        if outside:
            raise ValueError(f"start value {outside[0]} lies outside the range")
        return self


class Arm(Section):
    """One thing compared: a method on a quantization, its own parameters and its own search space."""

    method: str
    quantization: str
    params: dict[str, Scalar] = {}
    search: dict[str, Range] = {}

    @model_validator(mode="after")
    def _fixed_or_searched(self) -> "Arm":
        both = sorted(set(self.params) & set(self.search))
        if both:
            raise ValueError(f"{both[0]} is both fixed (params) and searched (search)")
        if "learning_rate" not in {**self.params, **self.search}:
            raise ValueError("needs a learning_rate, under search (a range) or params (one value)")
        return self


class Search(Section):
    """The tuning budget, equal for every arm."""

    trials: int = Field(4, gt=0)
    """Search trials per arm and tuning."""
    tunings: int = Field(1, gt=0)
    """Independent tunings per arm, each with its own sampler and seed; more than one for claims about methods."""
    seed: int = Field(0, ge=0, lt=1 << 31)
    """Seed of the search trials and of the sampler; tuning k uses seed + k."""


class Confirm(Section):
    """The runs that are judged: the best configuration of each arm on seeds that tuning never saw."""

    seeds: list[int] = Field([101, 102, 103], min_length=1)
    looks: list[int] = []
    """Numbers of seeds after which the verdict is looked at, e.g. [3, 5, 8]; empty: once, after all of them. The study
    stops at the first look that settles every arm."""

    @model_validator(mode="after")
    def _distinct(self) -> "Confirm":
        outside = [s for s in self.seeds if not 0 <= s < 1 << 31]
        if outside:
            raise ValueError(f"seed {outside[0]} is not between 0 and 2147483647")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"the same seed twice in {self.seeds} would count one run as two")
        if self.looks and (sorted(set(self.looks)) != self.looks or self.looks[-1] != len(self.seeds)):
            raise ValueError(f"looks {self.looks} must rise and end at the number of seeds, {len(self.seeds)}")
        return self

    @property
    def planned_looks(self) -> list[int]:
        return self.looks or [len(self.seeds)]


class Objective(Section):
    """What is compared, and how large a difference matters."""

    metric: str = AUTO
    """`task/metric` (e.g. `gsm8k/exact_match`) or `test_loss`; `auto`: the first task of the data, else `test_loss`."""
    margin: float = Field(0.0, ge=0)
    """Differences up to this size do not matter, in units of the metric."""
    baseline: str | None = None
    """The arm that the others are compared with; the first one when unset."""
    level: Literal["configurations", "methods"] = "configurations"
    """What is claimed: about the tuned configurations, whose seeds are the unit, or about the methods, where each
    independent tuning (search.tunings) is one unit. Seeds of one tuned winner say nothing about its method."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    """How often a verdict may err when the truth lies on the margin, both sides and all looks together."""
    worse_than_base_fails: bool = True
    """A run whose test loss is above the untrained base's counts as failed: counted and priced, never averaged in."""


class Served(Section):
    """How weights are stored when a model is run after training: a quantization and its parameters."""

    quantization: str
    params: dict[str, Scalar] = {}


class Speeds(Section):
    """How fast models are asked to answer: each batch size at each length of the prompt."""

    batches: list[int] = Field([1, 8], min_length=1)
    contexts: list[int] = Field([128, 512], min_length=1)
    """Tokens of the prompt."""
    new_tokens: int = Field(32, gt=0)
    """Tokens of the answer."""
    repeats: int = Field(5, gt=0)
    """Measurements of each, after a warm-up; bit-widths take turns, so that drift meets all alike."""


class Serve(Section):
    """At what bit-widths the base and the fine-tuned models are run after training."""

    at: dict[str, Served] = {}
    """By name, the widest first: it is what the others are compared with. Empty: nothing is run after training."""
    arms: list[str] | Literal["auto"] = AUTO
    """Whose confirmed runs are served; `auto`: the arms that train adapters on a base of 16 bits or more."""
    base: bool = True
    """Also the base itself, before any training."""
    ways: list[Literal["merged", "adapter"]] = ["merged", "adapter"]
    """`merged`: the adapter merged into dense weights, and these quantized; `adapter`: beside the quantized base."""
    speeds: Speeds | None = None
    """Measure how fast the base answers at each; unset: not measured."""

    @model_validator(mode="after")
    def _names(self) -> "Serve":
        for name in self.at:
            if not NAME.fullmatch(name):
                raise ValueError(f"at: {name!r} cannot name a bit-width: letters, digits, '_' and '-'")
        if len(set(self.ways)) < len(self.ways):
            raise ValueError(f"the same way twice in {self.ways}")
        return self


class Limits(Section):
    """When a trial is stopped."""

    trial_minutes: float | None = Field(None, gt=0)


class Prices(Section):
    """What things cost and are worth. Without a price costs are given in hours."""

    per_hour: float | None = Field(None, ge=0)
    """Of the device that trials run on."""
    currency: str = "$"
    value_per_point: float | None = Field(None, gt=0)
    """What 0.01 of the metric is worth, over the life of the model. Unset: the break-even is printed instead."""


class Origin(Section):
    """Where the results of a study come from that were made by another program. Set by `harness import`."""

    tool: str
    """The program that made them, as it calls itself, such as `PEFT`."""
    url: str | None = None
    """Where it publishes them."""
    revision: str | None = None
    """Commit or release of what was published, where that is known."""
    licence: str | None = None
    """Of the results, by its SPDX name."""
    note: str = ""
    """What a reader has to know before trusting them."""


class StudySpec(Section):
    """One question, one file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    question: str = ""
    controls: Controls
    arms: dict[str, Arm] = Field(min_length=1)
    search: Search = Search()
    confirm: Confirm = Confirm()
    objective: Objective = Objective()
    serve: Serve = Serve()
    limits: Limits = Limits()
    prices: Prices = Prices()
    origin: Origin | None = None
    """Results that were made elsewhere: a study with it can be read, not run."""

    @model_validator(mode="after")
    def _arms_make_sense(self) -> "StudySpec":
        for name in self.arms:
            if not NAME.fullmatch(name) or name == "zero-shot":
                raise ValueError(
                    f"arms: {name!r} cannot name an arm: letters, digits, '_' and '-', and not 'zero-shot'"
                )
        if self.objective.baseline is not None and self.objective.baseline not in self.arms:
            baseline = self.objective.baseline
            raise ValueError(f"objective.baseline {baseline!r} is not an arm; {did_you_mean(baseline, self.arms)}")
        unknown = [a for a in (self.serve.arms if self.serve.arms != AUTO else []) if a not in self.arms]
        if unknown:
            raise ValueError(f"serve.arms: {unknown[0]!r} is not an arm; {did_you_mean(unknown[0], self.arms)}")
        overlap = set(self.confirm.seeds) & set(range(self.search.seed, self.search.seed + self.search.tunings))
        if overlap:
            raise ValueError(f"confirm.seeds contains {overlap.pop()}, a seed that tuning used (search.seed)")
        tunings = self.search.tunings
        if self.objective.level == "methods" and (tunings < 2 or tunings != len(self.confirm.seeds)):
            raise ValueError(
                f"a claim about methods needs as many confirm.seeds ({len(self.confirm.seeds)}) as search.tunings "
                f"({tunings}), at least 2 and better 3: one fresh seed for each tuning's winner"
            )
        if self.objective.level == "configurations" and tunings > 1:
            raise ValueError("search.tunings above 1 is for objective.level=methods")
        return self

    @property
    def baseline(self) -> str:
        return self.objective.baseline or next(iter(self.arms))

    @property
    def question_id(self) -> str:
        """Hash of what makes results comparable: controls and arms. More trials or seeds leave it unchanged.

        Results that were made elsewhere were not planned as one study: more arms leave theirs unchanged too.
        """
        if self.origin is not None:
            return digest({"controls": self.controls.model_dump(), "origin": self.origin.tool})
        return digest(
            {"controls": self.controls.model_dump(), "arms": {k: a.model_dump() for k, a in self.arms.items()}}
        )


def digest(value: Any, length: int = 12) -> str:
    """A short hash of a JSON value, the same in every process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def load_study(path: Path, overrides: Iterable[str] = ()) -> StudySpec:
    """Read a study file and apply `dotted.key=value` overrides.

    An override that changes the question gives the study another name (`NAME-1a2b3c`), so that its results do not mix
    with those of the file; `name=...` among the overrides sets it.

    Raises:
        SpecError: the file cannot be read, or a key or value is not right; names the key and what would be right.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise SpecError(
            f"{path}: a study file is a mapping of keys, this is {type(raw).__name__}",
            "harness presets show tiny-methods",
        )
    plain = _validated(raw, str(path))
    changes = [_split(o) for o in overrides]
    if not changes:
        return plain
    changed = copy.deepcopy(raw)
    for key, value in changes:
        _set(changed, key, value)
    spec = _validated(changed, f"{path} with {' '.join(f'{k}={v}' for k, v in changes)}")
    if spec.question_id != plain.question_id and "name" not in dict(changes):
        spec = spec.model_copy(update={"name": f"{spec.name}-{spec.question_id[:6]}"})
    return spec


def dump_study(spec: StudySpec) -> str:
    """The study as YAML, every default spelled out; `load_study` reads it back."""
    value = spec.model_dump(mode="json")
    return yaml.dump(value, Dumper=_YamlOut, sort_keys=False, allow_unicode=True, width=120)


class _Yaml(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number and refuses a key given twice, as YAML 1.2 does and PyYAML does not.

    See yaml/pyyaml#173 and #165: of two arms with one name the first would be gone without a word.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is one word", key.start_mark)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _YamlOut(yaml.SafeDumper):
    """Puts quotes around text that `_Yaml` would read as a number, or with another line break than was written."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar(
            "tag:yaml.org,2002:str", data, '"' if set(data) & set("\x85\u2028\u2029") else None
        )


_YamlOut.add_representer(str, _YamlOut.represent_str)


for _class in (_Yaml, _YamlOut):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9_]*)?([eE][-+]?[0-9]+)$"),
        list("-+0123456789"),
    )


def read_yaml(path: Path) -> Any:
    """Raises SpecError, naming the line, when the file is missing or is not YAML."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Yaml)  # noqa: S506 a subclass of SafeLoader
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not a text file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise SpecError(f"{path}: not valid YAML{line}: {getattr(error, 'problem', None) or error}") from error


def _split(override: str) -> tuple[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise SpecError(f"{override!r} is not an override", "write it as key=value, e.g. controls.data.path=my.jsonl")
    try:
        return key.strip(), yaml.load(value, Loader=_Yaml)  # noqa: S506 a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise SpecError(f"{override!r}: the value is not valid YAML") from error


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    known = tree.get("arms")
    if parents[:1] == ["arms"] and len(parents) > 1 and isinstance(known, dict) and parents[1] not in known:
        raise SpecError(
            f"{dotted}: no arm {parents[1]!r}; {did_you_mean(parents[1], map(str, known))}",
            f"a new arm is given whole: arms.{parents[1]}='{{method: ..., quantization: ..., params: {{...}}}}'",
        )
    for i, parent in enumerate(parents):
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise SpecError(f"{dotted}: {'.'.join(parents[: i + 1])} is a value, it has no keys below it")
    if value is None:  # back to the default; `arms.full=null` leaves an arm out
        tree.pop(last, None)
    else:
        tree[last] = value


SHOULD_BE = {
    "bool_parsing": "true or false", "bool_type": "true or false", "string_type": "text", "list_type": "a list",
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "float_type": "a number", "too_short": "not empty",
    "dict_type": "keys with values", "model_type": "keys with values",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', the first one a letter or digit",
}  # fmt: skip
"""Our words for pydantic's errors where its own speak of Python."""


def _validated(raw: Mapping[str, Any], where: str) -> StudySpec:
    try:
        return StudySpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError(f"{where}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    """The first mistake in words: its dotted key, what it is and what would be right."""
    errors = error.errors()
    first = min(errors, key=lambda e: 0 if e["type"] == "extra_forbidden" else 1)
    if first["type"] == "extra_forbidden":
        *section, name = first["loc"]
        return f"{_dotted(first['loc'])} is not a key; {_right_key(str(name), _model_at(section))}"
    location = _without_union_tags(first["loc"])
    dotted = _dotted(location)
    if first["type"] == "missing":
        return f"{dotted} is missing"
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{dotted}: {message}" if dotted else message
    # one value may be read in several ways (`auto` or a list): name them all
    here = [e for e in errors if _without_union_tags(e["loc"]) == location and e["type"] != "value_error"]
    wanted = dict.fromkeys(SHOULD_BE.get(e["type"]) or e["msg"].removeprefix("Input should be ") for e in here)
    number = isinstance(first["input"], int | float) and "text" in wanted
    quotes = " (in quotes it would be text)" if number else ""
    return f"{dotted}: should be {' or '.join(wanted)}, got {first['input']!r}{quotes}"


def _dotted(location: Iterable[int | str]) -> str:
    return ".".join(str(part) for part in location)


def _without_union_tags(location: tuple[int | str, ...]) -> list[int | str]:
    """pydantic's location without the parts that name a member of a union instead of a key of the file."""
    kept = [p for p in location if not str(p).startswith(("list[", "literal[", "function-"))]
    return kept[:-1] if kept and kept[-1] in {"bool", "int", "float", "str", "[key]"} else kept


def _model_at(location: Iterable[int | str]) -> type[BaseModel]:
    """The section of a study file at a place."""
    here: Any = StudySpec
    for part in location:
        if isinstance(here, type) and issubclass(here, BaseModel):
            here = _section(here.model_fields[str(part)].annotation)
        else:  # a mapping of names to sections
            here = typing.get_args(here)[1]
    return cast(type[BaseModel], here)


def _section(annotation: Any) -> Any:
    """A field's type; of a section that may be left out, the section."""
    options = [a for a in typing.get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
    return options[0] if isinstance(annotation, types.UnionType) and options else annotation


def _right_key(name: str, section: type[BaseModel]) -> str:
    """The nearest key of the section; the same key elsewhere in a study file; else every key of the section."""
    nearest = did_you_mean(name, section.model_fields)
    elsewhere = [place for place in _places(StudySpec) if place.split(".")[-1] == name]
    if nearest.startswith("there are") and elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    return nearest


def _places(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a section that has a fixed place."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        inner = _section(field.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _places(inner, f"{prefix}{name}.")
