"""The fault lab: a running cluster is hurt on purpose, and judged by what it promises.

What it is: hands on the links and processes of a cluster on this machine (`hands`), scenarios that hurt it in mid-stream (`scenarios`, `run`), and the checkers of the
invariants (`ledger`, `judge`), for users and for the fault tests alike.
What it is not: part of a PoP. Nothing that runs in a PoP imports it.
What must stay true: what is judged is what clients saw and what the stores hold, never what an agent says of itself.
"""
