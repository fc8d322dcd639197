"""Homes of prefixes, as one PoP knows them: the piece of a namespace's client that a hand-over and a strong read stand on.

What it is: what `ef_homes` keeps in the namespace's slot, where each write is checked against it.
What it is not: the policies (edgeflow.core.policies), or the hand-over between two PoPs (edgeflow.cluster.homes).
What must stay true: a PoP that has said that it is no home any more, in a term, takes no write of an earlier one.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import msgpack

from edgeflow.core.policies import Home, Policies, Rule
from edgeflow.errors import BadRequest, HomeElsewhere, NoHome, StaleHome
from edgeflow.store.calls import Calls


@dataclass(frozen=True, slots=True)
class Homes:
    """The rules about homes that hold at a PoP, and how far its log was by then."""

    epoch: int
    seq: int
    rules: Policies


class HomedNamespace(Calls):
    """A namespace whose keys may have homes."""

    def homes(self) -> Policies:
        """What holds here about homes; places are not in it."""
        found = self._connection.one("HGETALL", self.prefix + "homes")
        rules = []
        for prefix, text in found.items():
            term, _, pop = text.decode().partition(":")
            rules.append(Rule(prefix.decode(), None, pop, int(term)))
        return _policies(rules)

    def home_of(self, key: str) -> Home | None:
        """The home of a key as this PoP knows it; None when every PoP takes its writes."""
        return self.homes().home(key)

    def home_for(self, keys: Sequence[str]) -> Home:
        """The one home of all `keys`, when that is this PoP. Raises NoHome, HomeElsewhere, and BadRequest when they have several."""
        rules = self.homes()
        homes = {key: rules.home(key) for key in keys}
        for key, home in homes.items():
            if home is None:
                raise NoHome(f"no policy gives the key {key!r} of {self.name!r} a home")
        found = {home for home in homes.values() if home is not None}
        if len(found) != 1:
            raise BadRequest(
                "the keys have different homes", hint="What is strong is decided at one PoP: send one for each."
            )
        (home,) = found
        if home.pop != self.pop:
            raise HomeElsewhere(f"the home of {keys[0]!r} is {home.pop!r}", details={"home": home.pop})
        return home

    def install_homes(self, policies: Policies) -> Homes:
        """Let the document's homes hold here, but for prefixes that are known to be in a later term."""
        return self._homes([(rule.prefix, rule.term, rule.home or "") for rule in policies.homes()], policies.term)

    def set_home(self, home: Home) -> Homes:
        """Let one prefix have this home from now on. Raises StaleHome when it is known to be elsewhere in that term, or in a later one."""
        held = self._homes([(home.prefix, home.term, home.pop)], None)
        now = held.rules.rule(home.prefix)
        if now is None or (now.home, now.term) != (home.pop, home.term):
            known = f"{now.home!r} in term {now.term}" if now is not None else "nowhere"
            raise StaleHome(f"the home of {home.prefix!r} is {known} at {self.pop}, not {home.pop!r} in {home.term}")
        return held

    def as_home(self, term: int) -> Self:
        """This handle for writes that are right only while this PoP is the home of their keys in `term`; else they raise StaleHome."""
        handle = copy.copy(self)
        handle._home_term = term
        return handle

    def _homes(self, rules: Sequence[tuple[str, int, str]], term: int | None) -> Homes:
        payload: dict[str, object] = {"rules": [list(rule) for rule in rules]}
        if term is not None:
            payload.update(whole=True, term=term)
        epoch, seq, held = msgpack.unpackb(self._call("ef_homes", **payload))
        return Homes(epoch, seq, _policies([Rule(prefix, None, pop, at) for prefix, at, pop in held]))


def _policies(rules: Sequence[Rule]) -> Policies:
    ordered = tuple(sorted(rules, key=lambda rule: (-len(rule.prefix), rule.prefix)))
    return Policies(ordered, max((rule.term for rule in ordered), default=0))
