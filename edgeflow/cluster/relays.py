"""Relays: whose logs this PoP lets another peer send, because its own link to them is down.

What it is: the choice, without I/O; time is an argument.
What it is not: the sending (sender.py).
What must stay true: where all links are up nothing is relayed; a PoP's logs are asked of one peer at a time, the one that has most of them.
"""

from collections.abc import Callable, Iterable, Mapping

RELAY_S = 2.0
"""A link that is down for this long is gone round."""


class Relays:
    """One per PoP."""

    def __init__(self) -> None:
        self._down_since_s: dict[str, float] = {}
        self._helpers: dict[str, str] = {}

    def choose(self, up: Mapping[str, bool], reach: Callable[[str, str], int], now_s: float) -> dict[str, list[str]]:
        """Per peer whose link is up: the PoPs whose logs it shall send, given `reach(peer, pop)`: how much it has of the logs of `pop`."""
        for pop, is_up in up.items():
            if is_up:
                self._down_since_s.pop(pop, None)
                self._helpers.pop(pop, None)
            else:
                self._down_since_s.setdefault(pop, now_s)
        for pop in set(self._down_since_s) - set(up):  # no member any more, and nothing of it is missing here
            del self._down_since_s[pop]
            self._helpers.pop(pop, None)
        helping = [peer for peer, is_up in up.items() if is_up]
        wanted: dict[str, list[str]] = {peer: [] for peer in helping}
        for pop, since_s in sorted(self._down_since_s.items()):
            if now_s - since_s < RELAY_S or not helping:
                continue
            best = max(sorted(helping, reverse=True), key=lambda peer: reach(peer, pop))
            helper = self._helpers.get(pop)
            if helper not in helping or reach(best, pop) > reach(helper, pop):
                helper = self._helpers[pop] = best
            wanted[helper].append(pop)
        return wanted

    def helpers(self, pops: Iterable[str]) -> dict[str, str]:
        """Who sends the logs of which of these."""
        return {pop: self._helpers[pop] for pop in pops if pop in self._helpers}
