"""The third step, at the other PoP. Fast, so that it claims several at once; some of its bodies are large enough to be blobs."""

from edgeflow import function


@function
def handle(ctx, b):
    work = b.json()
    return {**work, "pad": "x" * 6000 if work["n"] % 4 == 0 else ""}
