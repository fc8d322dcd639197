"""The visible effect: one event, one value and one count for each input."""

from edgeflow import function


@function
def handle(ctx, start, a):
    if start.json()["n"] != a.json()["n"]:
        raise ValueError("two different events were joined")
    ctx.ekv.put(f"effects/{start.subject}", start.subject)
    ctx.ekv.increment("tally")
    ctx.emit("done", start.json())
