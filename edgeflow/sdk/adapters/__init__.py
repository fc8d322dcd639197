"""Contracts other than `sdk`: the SDK's runtime with a handler that talks to somebody else's program.

What it is: one adapter for each contract (`http.py`, `stdio.py`, `mqtt.py`) and what they share: the program as a process (`program.py`), its input as
CloudEvents (`requests.py`), its answers as outputs (`answers.py`), and the small HTTP API through which it uses the store (`effects.py`).
What it is not: a second runtime. Claims, retries, commits, state, deadlines and ids are those of `edgeflow.sdk.runtime`.
What must stay true: standard library only, because the adapter's image has nothing else; the program ends with its adapter, and the adapter with it.

`python -m edgeflow.sdk.adapters` is what the runner starts, in place of `edgeflow.sdk.runtime`.
"""
