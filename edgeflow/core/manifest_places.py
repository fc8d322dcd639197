"""Rules of `place`: what a function that runs at several PoPs can have.

What it is: a generator of (place, problem), the same for what was written and for a resolved manifest from elsewhere.
What it is not: who does which event (edgeflow.core.ownership), or whether a PoP exists (manifest_scalars).
What must stay true: what cannot be handed from one PoP to another without loss is refused by name.
"""

from collections.abc import Iterator, Mapping

from edgeflow.core.manifest_wiring import Wiring

Finding = tuple[tuple[str | int, ...], str]


def place_rules(place: object, wiring: Wiring) -> Iterator[Finding]:
    """What does not go together with the places of a function, from the data of either form."""
    if not isinstance(place, Mapping):
        return
    pops, run = place.get("pops"), place.get("run") or "once"
    count = len(pops) if isinstance(pops, list) else 1
    if count > 1 and len({str(pop) for pop in pops or ()}) < count:
        yield ("place", "pops"), "names a PoP twice; write each once"
    if count < 2:
        return
    if any(item.get("qos") == 0 for item in wiring.inputs):
        yield (
            ("place", "pops"),
            "a function that hears the broker itself (`qos: 0`, `contract: mqtt`) would hear every event at each of them; name one PoP",
        )
    if run != "once":
        if wiring.keyed and wiring.keyed["state"]:
            yield (
                ("state",),
                f"with `run: {run}` each PoP would overwrite what the others keep for a key; name one PoP, or write `run: once`",
            )
    elif wiring.join and wiring.join["kind"] != "all":
        yield (
            ("subscribe", "join"),
            "with `run: once` at several PoPs a join is one of all its channels; name one PoP, or write `run: local` or `run: every`",
        )
