"""Policies of a namespace: what a prefix of its keys says about where bodies are kept, and at which PoP writes are decided.

What it is: the document `policies/<namespace>` of the system namespace, its rules, and the changes that may be made to it.
What it is not: the placement of functions, the hand-over of a home (edgeflow.cluster), or the check of a write (the store's script).
What must stay true: `place` and `home` are each decided by the longest prefix that says something about them; a home that changes gets a higher
term than any before it, and a change that would take a key away from a home in use is refused: that is a move.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from edgeflow.core.channels import check_key
from edgeflow.errors import BadName, BadPolicy

Place = Literal["eager", "lazy"] | frozenset[str]
"""Where bodies under a prefix are kept without being asked for: at every PoP, at none but their origin, or at these (and the origin)."""

EAGER: Place = "eager"
LAZY: Place = "lazy"
MAX_RULES = 100
_FIELDS = frozenset({"prefix", "place", "home", "term"})


@dataclass(frozen=True, slots=True)
class Home:
    """The PoP that decides the writes under `prefix`, and the number of its term."""

    prefix: str
    pop: str
    term: int


@dataclass(frozen=True, slots=True)
class Rule:
    """What one prefix says. None: nothing, the next shorter prefix decides. `home` "" says that there is none."""

    prefix: str
    place: Place | None = None
    home: str | None = None
    term: int = 0

    def to_json(self) -> dict[str, Any]:
        """The rule as it is stored and shown."""
        document: dict[str, Any] = {"prefix": self.prefix}
        if self.place is not None:
            document["place"] = {"pin": sorted(self.place)} if isinstance(self.place, frozenset) else self.place
        if self.home is not None:
            document["home"] = self.home or None
            document["term"] = self.term
        return document


@dataclass(frozen=True, slots=True)
class Policies:
    """The rules of a namespace, longest prefix first. `term` is the highest that was ever given out."""

    rules: tuple[Rule, ...] = ()
    term: int = 0

    def place(self, key: str) -> Place:
        """Where the body of `key` is kept."""
        for rule in self.rules:
            if rule.place is not None and key.startswith(rule.prefix):
                return rule.place
        return EAGER

    def home(self, key: str) -> Home | None:
        """The home of `key`, None when every PoP takes its writes."""
        for rule in self.rules:
            if rule.home is not None and key.startswith(rule.prefix):
                return Home(rule.prefix, rule.home, rule.term) if rule.home else None
        return None

    def homes(self) -> tuple[Rule, ...]:
        """The rules that say something about homes, longest prefix first."""
        return tuple(rule for rule in self.rules if rule.home is not None)

    def rule(self, prefix: str) -> Rule | None:
        """The rule of exactly this prefix."""
        return next((rule for rule in self.rules if rule.prefix == prefix), None)

    def to_json(self) -> dict[str, Any]:
        """The document as it is stored."""
        return {"term": self.term, "rules": [rule.to_json() for rule in sorted(self.rules, key=lambda one: one.prefix)]}

    def dump(self) -> bytes:
        """The document as a value."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":")).encode()


NONE = Policies()


def load_policies(data: bytes | None) -> Policies:
    """The stored document, no rules for None. What cannot be read raises BadPolicy."""
    if data is None:
        return NONE
    try:
        document = json.loads(data)
        rules = parse_rules(document["rules"])
        return Policies(rules, max([int(document["term"]), *(rule.term for rule in rules)]))
    except (ValueError, KeyError, TypeError) as error:
        raise BadPolicy(f"the stored policies cannot be read: {error!r}") from None


def parse_rules(items: object, pops: Collection[str] | None = None) -> tuple[Rule, ...]:
    """Rules as a client writes them, longest prefix first. Raises BadPolicy that names what is wrong; `pops` are the PoPs there are."""
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise BadPolicy("`rules` is a list", hint=_HINT)
    if len(items) > MAX_RULES:
        raise BadPolicy(f"{len(items)} rules are more than {MAX_RULES}")
    rules: dict[str, Rule] = {}
    for item in items:
        rule = _parse_rule(item, pops)
        if rule.prefix in rules:
            raise BadPolicy(f"the prefix {rule.prefix!r} has two rules", hint="Put what they say into one.")
        rules[rule.prefix] = rule
    return _ordered(rules.values())


def revised(now: Policies, rules: Sequence[Rule]) -> Policies:
    """`now` with these rules in place of its own: terms are given by us. Raises BadPolicy when a key would change from one home to another."""
    wanted = Policies(_ordered(rules))
    term = now.term
    given: list[Rule] = []
    for rule in wanted.rules:
        known = now.rule(rule.prefix)
        if rule.home is None:
            given.append(replace(rule, term=0))
        elif known is not None and known.home == rule.home:
            given.append(replace(rule, term=known.term))
        else:
            term += 1
            given.append(replace(rule, term=term))
    for prefix in {rule.prefix for rule in (*now.rules, *wanted.rules)}:
        before, after = now.home(prefix), wanted.home(prefix)
        if before is not None and after is not None and before.pop != after.pop:
            raise BadPolicy(
                f"the home of {prefix!r} is {before.pop!r}; a rule does not take it to {after.pop!r}",
                hint="`edgeflow kv policy move` hands a home over without loss.",
            )
    return Policies(_ordered(given), term)


def moved(now: Policies, prefix: str, to: str, term: int) -> Policies:
    """`now` with the home of exactly `prefix` at `to`, in `term`. Raises BadPolicy when that prefix has no home."""
    rule = now.rule(prefix)
    if rule is None or not rule.home:
        raise BadPolicy(
            f"no rule gives the prefix {prefix!r} a home", hint="`edgeflow kv policy show` lists the rules."
        )
    others = [one for one in now.rules if one.prefix != prefix]
    return Policies(_ordered([*others, replace(rule, home=to, term=term)]), max(now.term, term))


def check_prefix(prefix: object) -> str:
    """`prefix` itself: empty for all keys, or the beginning of a key. Raises BadPolicy."""
    if not isinstance(prefix, str):
        raise BadPolicy("`prefix` is a text", hint=_HINT)
    if prefix:
        try:
            check_key(prefix.removesuffix("/"))
        except BadName as error:
            raise BadPolicy(f"{prefix[:80]!r} is not the beginning of a key: {error.message}") from None
        if prefix.startswith("_"):
            raise BadPolicy(f"keys like {prefix!r} belong to edgeflow: no policy holds for them")
    return prefix


_HINT = 'A rule is {"prefix": "models/", "place": "eager" | "lazy" | {"pin": ["la"]}, "home": "chicago"}.'


def _ordered(rules: Collection[Rule]) -> tuple[Rule, ...]:
    return tuple(sorted(rules, key=lambda rule: (-len(rule.prefix), rule.prefix)))


def _parse_rule(item: object, pops: Collection[str] | None) -> Rule:
    if not isinstance(item, Mapping):
        raise BadPolicy("a rule is an object", hint=_HINT)
    unknown = sorted(str(name) for name in item if name not in _FIELDS)
    if unknown:
        raise BadPolicy(f"a rule has no field {unknown[0]!r}", hint=_HINT)
    prefix = check_prefix(item.get("prefix"))
    place = _parse_place(item["place"], prefix, pops) if "place" in item else None
    home: str | None = None
    if "home" in item:
        home = "" if item["home"] is None else _known(item["home"], f"the home of {prefix!r}", pops)
    if place is None and home is None:
        raise BadPolicy(f"the rule of {prefix!r} says nothing", hint=_HINT)
    term = item.get("term", 0)
    if not isinstance(term, int) or isinstance(term, bool) or not 0 <= term < 2**53:
        raise BadPolicy(f"the term of {prefix!r} is not a number")
    return Rule(prefix, place, home, term)


def _parse_place(value: object, prefix: str, pops: Collection[str] | None) -> Place:
    if value == "eager":
        return "eager"
    if value == "lazy":
        return "lazy"
    if isinstance(value, Mapping) and set(value) == {"pin"} and isinstance(value["pin"], list) and value["pin"]:
        return frozenset(_known(pop, f"a PoP of the place of {prefix!r}", pops) for pop in value["pin"])
    raise BadPolicy(f"the place of {prefix!r} is none of eager, lazy and a list of PoPs to pin to", hint=_HINT)


def _known(pop: object, what: str, pops: Collection[str] | None) -> str:
    if not isinstance(pop, str) or not pop or (pops is not None and pop not in pops):
        there = f"; there are {', '.join(sorted(pops))}" if pops is not None else ""
        raise BadPolicy(f"{what} is {str(pop)[:40]!r}, which is no PoP{there}")
    return pop
