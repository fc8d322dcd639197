"""A scenario as it is written down: what load, what is done to which PoP when, and what is expected of it.

What it is: the YAML of `scenarios/*.yaml` and of a user's own files as checked data, and the roles `a`, `b`, `c` given to PoPs by the seed.
What it is not: the running of it (run.py).
What must stay true: the same scenario with the same seed and PoPs is the same sequence of steps; what is not known is refused by name.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeflow.lab import units
from edgeflow.lab.errors import BadScenario, BadTrouble
from edgeflow.lab.hands import PARTS

FOLDER = Path(__file__).with_name("scenarios")
Role = Literal["a", "b", "c"]
ROLES: tuple[Role, ...] = get_args(Role)
VERBS = ("kill", "take_down", "restart", "pause", "resume", "partition", "heal", "wan", "skew", "nothing")
Form = Literal["short", "long"]
JITTER = 0.25
"""By so much the moments of a scenario move with its seed, either way."""
Who = Annotated[str, Field(pattern=rf"^[abc](/({'|'.join(PARTS)}))?$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Wan(_Part):
    """Links that become long or narrow; all of them, or those between two roles."""

    between: Annotated[str, Field(pattern=r"^[abc],[abc]$")] | None = None
    delay: str | None = None
    bandwidth: str | None = None

    @property
    def delay_ms(self) -> float | None:
        return None if self.delay is None else units.delay_ms(self.delay)

    @property
    def kbit_s(self) -> float | None:
        return None if self.bandwidth is None else units.kbit_s(self.bandwidth)


class Skew(_Part):
    """A wall clock that is wrong."""

    pop: Role
    off_ms: int


class Step(_Part):
    """One thing that is done, after a wait."""

    after_events: Annotated[int, Field(ge=0)] = 0
    """So many more inputs were acknowledged, anywhere."""
    after_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """So long after the step before it: how long what that did lasts."""
    wait_ready: Role | None = None
    """Until this PoP is ready again, before the step."""
    kill: Who | None = None
    take_down: Role | None = None
    """Killed, and a machine that is off until `resume`."""
    restart: Role | None = None
    pause: Who | None = None
    resume: Role | None = None
    partition: Annotated[str, Field(pattern=r"^[abc](,[abc])?$")] | None = None
    one_way: bool = False
    """Of a partition: only what the first sends."""
    heal: Literal[True] | None = None
    wan: Wan | None = None
    skew: Skew | None = None
    nothing: Literal[True] | None = None
    """Only the waits."""

    @model_validator(mode="after")
    def _one_verb(self) -> "Step":
        given = [verb for verb in VERBS if getattr(self, verb) is not None]
        if len(given) != 1:
            raise ValueError(f"a step does one of {', '.join(VERBS)}; this one does {' and '.join(given) or 'none'}")
        if self.one_way and self.partition is None:
            raise ValueError("one_way belongs to a partition")
        return self

    @property
    def verb(self) -> str:
        return next(verb for verb in VERBS if getattr(self, verb) is not None)

    @property
    def strikes(self) -> Role | None:
        """The PoP that is lost to the others by this step."""
        who = self.take_down or self.pause or self.kill or self.partition
        return None if who is None or "/" in who else who[0]  # type: ignore[return-value]

    @property
    def mends(self) -> bool:
        return bool(self.heal or self.resume)


class Load(_Part):
    """What is published while the steps are done, and until so much is acknowledged."""

    events: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    per_s: Annotated[float, Field(gt=0, le=10_000)] = 60.0
    at: list[Role] = Field(default=["a", "b"], min_length=1)
    """PoPs that inputs enter at."""
    ack: Annotated[str, Field(pattern=r"^(durable|replicated:[1-9])$")] = "durable"
    """What is asked for before an input counts as acknowledged."""


class Document(_Part):
    """The file."""

    what: str
    pops: Annotated[int, Field(ge=1, le=3)] = 2
    """How many PoPs it needs."""
    place: list[Role] = Field(default=["a", "b"], min_length=1)
    """Where its functions run."""
    load: Load = Load()
    long: Load | None = None
    """The load of the long form; else the short one's."""
    steps: list[Step] = Field(default_factory=list)
    sabotage: Literal["lose", "double"] | None = None
    """Of controls: the functions lose, or double, one input in twenty. Such a scenario passes when that is found."""

    @model_validator(mode="after")
    def _roles_there(self) -> "Document":
        roles = set(ROLES[: self.pops])
        used = {*self.place, *self.load.at, *(self.long.at if self.long else ())}
        for step in self.steps:
            named = (step.kill, step.take_down, step.restart, step.pause, step.resume, step.partition, step.wait_ready)
            used |= {part for who in named if who for part in who.split("/")[0].split(",")}
            used |= {step.skew.pop} if step.skew else set()
            used |= set(step.wan.between.split(",")) if step.wan and step.wan.between else set()
        if used - roles:
            raise ValueError(f"pops: {self.pops} has no {', '.join(sorted(used - roles))}")
        return self


@dataclass(frozen=True)
class Scenario:
    """A scenario by its name."""

    name: str
    document: Document

    @cached_property
    def needs_clock(self) -> bool:
        """Whether it sets clocks wrong, which only a cluster that was started for it can."""
        return any(step.skew for step in self.document.steps)

    def load(self, form: Form) -> Load:
        return self.document.long or self.document.load if form == "long" else self.document.load

    def cast(self, pops: Sequence[str], seed: int) -> dict[str, str]:
        """Which PoP plays which role. Raises BadScenario when there are too few."""
        if len(pops) < self.document.pops:
            raise BadScenario(
                f"{self.name} needs {self.document.pops} PoPs, this cluster has {len(pops)}.", hint="Start one with more, or use --fresh."
            )  # fmt: skip
        chosen = random.Random(f"{self.name} {seed}").sample(sorted(pops), self.document.pops)
        return dict(zip(ROLES, chosen, strict=False))

    def steps(self, seed: int) -> list[Step]:
        """Its steps, with the moments that the seed gives them."""
        chance = random.Random(seed)
        return [
            step.model_copy(update={"after_events": round(step.after_events * chance.uniform(1 - JITTER, 1 + JITTER))})
            for step in self.document.steps
        ]


def parse(name: str, text: str) -> Scenario:
    """A scenario from its text. Raises BadScenario."""
    try:
        found: Any = yaml.safe_load(text)
        document = Document.model_validate(found)
        for step in document.steps:
            if step.wan:
                step.wan.delay_ms, step.wan.kbit_s  # noqa: B018 - refused now, not in the middle of the run
    except yaml.YAMLError as error:
        raise BadScenario(f"{name} is not YAML: {error}") from None
    except BadTrouble as error:
        raise BadScenario(f"{name}: {error.message}", hint=error.hint) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadScenario(f"{name}: {where + ': ' if where else ''}{first['msg']}") from None
    return Scenario(name, document)


def find(name: str) -> Scenario:
    """The scenario of this name, or in this file. Raises BadScenario."""
    known = names()
    file = FOLDER / f"{name}.yaml" if name in known else Path(name)
    if name not in known and not name.endswith((".yaml", ".yml")):
        raise BadScenario(
            f"There is no scenario {name[:60]!r}.", hint=f"There are: {', '.join(known)}; or name a file."
        )
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadScenario(f"{file} cannot be read: {error}") from None
    return parse(name if name in known else file.stem, text)


def names() -> list[str]:
    """The scenarios that come along, in the order of their names."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))
