"""Between PoPs: one mutual-TLS link per pair, over which each PoP pushes its own logs and the blobs they refer to.

What belongs here: the link protocol, its transport, and who asks whom for a blob. What does not: what an entry means (store), what happens when
an event is released (flow). docs/links.md states the guarantees.
"""
