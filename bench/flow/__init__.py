"""edgeflow side by side with other ways to do the same: shapes of applications, one at a time and as many as go through, and overload.

What it is: `python -m bench.flow`, which `make bench-flow` calls. What it is not: the goals of one durable function; those are `python -m bench`.
"""
